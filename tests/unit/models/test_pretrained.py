"""Where the backbone's weights are looked for, and what is said when they are not there."""

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from mask_ray.models import mobilenet, pretrained
from mask_ray.models.pretrained import WeightsError

IMAGENET = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras"


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Downloads that Keras was asked for; all of them fail."""
    asked: list[tuple[Any, ...]] = []

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        asked.append((*arguments, options))
        raise OSError("no route\nto host")

    keras: Any = ModuleType("keras")
    keras.utils = ModuleType("keras.utils")
    keras.utils.get_file = refuse
    monkeypatch.setitem(sys.modules, "keras", keras)
    return asked


def test_a_file_is_taken_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.h5"
    path.touch()
    assert pretrained.find(str(path), alpha=1.0) == path

    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.find("~/mine.h5", alpha=1.0) == path


@pytest.mark.parametrize("given", ["nowhere.h5", "/nowhere/weights.h5", "/"])
def test_a_missing_file_is_told_what_is_allowed(given: str) -> None:
    with pytest.raises(WeightsError) as told:
        pretrained.find(given, alpha=1.0)
    assert str(told.value) == (
        f"backbone_weights must be imagenet, none or an existing .h5 file; got {given}. "
        "A submitted job runs in a copy of the working directory: give an absolute path"
    )


@pytest.mark.parametrize(("alpha", "written"), [(1.0, "1.0"), (1, "1.0"), (0.35, "0.35")])
def test_imagenet_weights_that_keras_has_are_not_downloaded(
    keras_home: Path,
    download: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    alpha: float,
    written: str,
) -> None:
    path = keras_home / "models" / IMAGENET.format(alpha=written)
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(mobilenet.WEIGHTS_SHA256, path.name, digest)
    assert pretrained.find("imagenet", alpha) == path
    assert download == []


def test_imagenet_weights_of_another_digest_are_rejected(
    keras_home: Path, download: list[Any]
) -> None:
    path = keras_home / "models" / IMAGENET.format(alpha="1.0")
    path.write_bytes(b"not ImageNet's")
    with pytest.raises(WeightsError, match=re.escape(f"{path} must have the SHA-256 e2517ab4fb")):
        pretrained.find("imagenet", alpha=1.0)


def test_the_pinned_digest_is_that_of_the_file(shared: Path) -> None:
    (path,) = (shared / "weights").glob("*.h5")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert mobilenet.WEIGHTS_SHA256[path.name] == digest


def test_imagenet_weights_are_fetched_from_where_keras_does(
    keras_home: Path, download: list[Any]
) -> None:
    with pytest.raises(WeightsError):
        pretrained.find("imagenet", alpha=1.4)
    ((name, url, options),) = download
    assert name == IMAGENET.format(alpha="1.4")
    assert url == (
        f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{name}"
    )
    assert options == {"cache_subdir": "models"}


def test_a_failed_download_says_what_to_do(keras_home: Path, download: list[Any]) -> None:
    with pytest.raises(WeightsError) as told:
        pretrained.find("imagenet", alpha=1.0)
    assert re.fullmatch(
        r"backbone_weights imagenet: the download failed \(no route to host\)\. Put the file into "
        rf"{re.escape(str(keras_home / 'models'))}, or pass its path as --backbone-weights, or "
        r"train without it by --backbone-weights none",
        str(told.value),
    )


def test_a_file_that_does_not_fit_is_named_with_what_would(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(WeightsError) as told:
        pretrained.read(str(path), alpha=0.35)
    assert str(told.value).startswith(
        "backbone_weights must be of MobileNetV2 without top and of width alpha 0.35; "
        f"{path} does not fit: Unable to"
    )
