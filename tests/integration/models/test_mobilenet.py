"""The ONNX graph and the reader of .h5 files agree with Keras, which makes the same of them."""

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest

from mask_ray.config import ALPHAS, IMAGE_SIZES
from mask_ray.models import mobilenet, onnx_export
from mask_ray.models.predictor import FeatureExtractor
from tests.support import keras_models


def pixels(image_size: int) -> np.ndarray:
    """Noise, each image of a brightness of its own."""
    rng = np.random.default_rng(0)
    tints = rng.uniform(0.1, 1, (8, 1, 1, 3))
    return (tints * rng.integers(0, 256, (8, image_size, image_size, 3))).astype(np.uint8)


@pytest.mark.parametrize(
    ("image_size", "alpha"),
    # Each width once, and each size: the largest image through the narrowest network.
    [*zip([*reversed(IMAGE_SIZES), 96], ALPHAS, strict=True)],
)
def test_features_are_those_of_keras_at_every_width_and_size(image_size: int, alpha: float) -> None:
    images = pixels(image_size)
    model = keras_models.build(images, num_classes=2, alpha=alpha)
    weights = model.get_layer("backbone").get_weights()
    onnx_file = onnx_export.backbone_onnx(weights, image_size=image_size, alpha=alpha)
    extractor = FeatureExtractor(onnx_file)
    expected = keras_models.features_of(model, images)
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(extractor.extract(images), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(extractor.extract(images[:1]), expected[:1], rtol=0, atol=1e-4)


def test_batch_norm_is_folded_away() -> None:
    model = keras_models.build(pixels(96), num_classes=2)
    weights = model.get_layer("backbone").get_weights()
    graph = onnx.load_from_string(
        onnx_export.backbone_onnx(weights, image_size=96, alpha=0.35)
    ).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 52
    assert kinds.count("Add") == 10
    assert "BatchNormalization" not in kinds


def saved(backbone: keras.Model, path: Path) -> bytes:
    if path.name.endswith(".weights.h5"):
        backbone.save_weights(path)
    else:
        backbone.save_weights(path.with_suffix(".weights.h5"))
        import h5py
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, backbone)
    return path.read_bytes()


def backbone(alpha: float = 0.35) -> keras.Model:
    return keras_models.build(pixels(96), num_classes=2, alpha=alpha).get_layer("backbone")


FORMATS = ["backbone.weights.h5", "backbone.h5"]


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    """In the format of Keras 3, and in the older one that ImageNet weights come in."""
    made = backbone()
    rng = np.random.default_rng(0)
    expected = [rng.normal(size=weight.shape).astype(np.float32) for weight in made.get_weights()]
    made.set_weights(expected)
    found = mobilenet.read_h5(saved(made, tmp_path / name), alpha=0.35)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_imagenet_s_weights_are_those_that_keras_loads(shared: Path) -> None:
    (path,) = (shared / "weights").glob("mobilenet_v2_*_1.0_224_no_top.h5")
    found = mobilenet.read_h5(path.read_bytes(), alpha=1.0)
    by_keras = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), include_top=False, weights=path
    )
    for got, wanted in zip(found, by_keras.get_weights(), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_another_width_are_refused(tmp_path: Path, name: str) -> None:
    encoded = saved(backbone(alpha=0.75), tmp_path / name)
    with pytest.raises(ValueError, match=r"layer 1 must have .*16\).*; got .*24\)\]"):
        mobilenet.read_h5(encoded, alpha=0.35)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_another_network_are_refused(tmp_path: Path, name: str) -> None:
    layers = [keras.layers.Input((4,)), keras.layers.Dense(3)]
    encoded = saved(keras.Sequential(layers), tmp_path / name)
    with pytest.raises(ValueError, match=r"must have 104 layers|only 0 layers of class conv2d"):
        mobilenet.read_h5(encoded, alpha=0.35)


@pytest.mark.parametrize("encoded", [b"not HDF5", b"", b"layer_names", b"\x89HDF\r\n\x1a\n"])
def test_what_is_no_file_of_weights_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"Unable to .*open file"):
        mobilenet.read_h5(encoded, alpha=0.35)
