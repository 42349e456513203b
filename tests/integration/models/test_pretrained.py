"""ImageNet weights are looked for where Keras looks for them."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

IMAGENET = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras"


def test_the_file_s_name_is_the_one_keras_looks_for(
    keras_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Keras itself would load for `weights="imagenet"`."""
    import keras

    asked = []

    def refuse(name: str, *arguments: Any, **options: Any) -> NoReturn:
        asked.append(name)
        raise OSError("not now")

    module = sys.modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", refuse)
    with pytest.raises(OSError, match="not now"):
        keras.applications.MobileNetV2(input_shape=(224, 224, 3), alpha=0.5, include_top=False)
    assert asked == [IMAGENET.format(alpha="0.5")]
