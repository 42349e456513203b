"""int8 versions of models: what they keep, and when they are chosen."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mask_ray.models import onnx_export
from mask_ray.models.predictor import Predictor
from mask_ray.models.quantize import Figures, images_per_second, quantize, reason_against
from tests.support.backbone_weights import random_weights
from tests.support.onnx_files import CLASS_NAMES

NAMES = list(CLASS_NAMES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """The narrowest network, its int8 version, and images of noise."""
    folder = tmp_path_factory.mktemp("small")
    weights = random_weights(0.35)
    backbone = onnx_export.backbone_onnx(weights, image_size=96, alpha=0.35)
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(len(weights[-1]), 2)).astype(np.float32) / 20
    float32, int8 = folder / "float32.onnx", folder / "int8.onnx"
    float32.write_bytes(onnx_export.classifier_onnx(backbone, kernel, np.zeros(2, "f4"), NAMES))
    images = rng.integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
    quantize(float32, int8, images)
    return float32, int8, images


def test_an_int8_model_is_used_as_the_float32_one_is(small: tuple[Path, Path, np.ndarray]) -> None:
    float32, int8, images = small
    before, after = Predictor(float32), Predictor(int8)

    assert (after.class_names, after.image_size) == (before.class_names, before.image_size)
    answers = after.predict(images)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    # Noise, through random weights, is where int8 is at its worst.
    assert np.abs(answers - before.predict(images)).mean() < 0.1


def test_its_weights_are_bytes_with_a_scale_per_channel(
    small: tuple[Path, Path, np.ndarray],
) -> None:
    float32, int8, _ = small
    assert int8.stat().st_size < 0.5 * float32.stat().st_size

    tensors = {t.name: t for t in onnx.load(int8).graph.initializer}
    kernels = [t for t in tensors.values() if t.data_type == onnx.TensorProto.INT8]
    assert len(kernels) >= 52
    scales = [tensors[t.name.replace("_quantized", "_scale")] for t in kernels if len(t.dims) == 4]
    assert [list(s.dims) for s in scales] == [[t.dims[0]] for t in kernels if len(t.dims) == 4]


def test_models_are_timed_in_turns(small: tuple[Path, Path, np.ndarray]) -> None:
    float32, int8, images = small

    rates = images_per_second([Predictor(float32), Predictor(int8)], images)

    assert len(rates) == 2
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("int8", "reason"),
    [
        (Figures(0.990, 200), None),
        (Figures(0.988, 101), None),
        (Figures(0.995, 200), None),
        (Figures(0.9879, 500), "its test accuracy is 0.9879 in place of 0.9900"),
        (Figures(0.990, 100), "it is not faster here: 100 images/s in place of 100"),
        (Figures(0.995, 90), "it is not faster here"),
    ],
)
def test_int8_is_served_if_it_is_as_good_and_faster(int8: Figures, reason: str | None) -> None:
    against = reason_against(Figures(0.990, 100), int8)

    assert (against is None) if reason is None else (against or "").startswith(reason)
