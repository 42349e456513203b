"""The Keras model: what it maps, what is trained when, and its ONNX twin."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mask_ray import model as models
from mask_ray.images import decode_resized
from mask_ray.predictor import Predictor

pytestmark = pytest.mark.slow

SIZE = 96


def build(alpha: float = 0.35, from_scratch: bool = False) -> keras.Model:
    keras.utils.set_random_seed(0)
    return models.build(num_classes=3, image_size=SIZE, alpha=alpha, from_scratch=from_scratch)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build()


def pixels(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, SIZE, SIZE, 3), np.uint8)


def test_maps_raw_pixels_to_probabilities(model: keras.Model) -> None:
    probabilities = model.predict(pixels(5), verbose=0)
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_augments_in_training_only(model: keras.Model) -> None:
    augment = model.get_layer("augment")
    views = pixels(4).astype("float32") / 127.5 - 1
    np.testing.assert_array_equal(augment(views, training=False), views)
    assert not np.allclose(augment(views, training=True), views)


def test_a_frozen_backbone_leaves_the_head_to_train(model: keras.Model) -> None:
    models.freeze_backbone(model)
    assert [weight.path for weight in model.trainable_weights] == [
        "probabilities/kernel",
        "probabilities/bias",
    ]


def test_fine_tuning_trains_the_last_blocks_but_no_batch_norm(model: keras.Model) -> None:
    models.thaw_backbone(model, from_scratch=False)
    trained = {weight.path.split("/")[-2] for weight in model.trainable_weights}
    assert trained >= {"block_13_expand", "block_16_project", "Conv_1", "probabilities"}
    assert not {name for name in trained if "BN" in name or "bn" in name or "block_12" in name}
    norm = model.get_layer("backbone").get_layer("Conv_1_bn")
    before = norm.moving_mean.numpy()
    model(pixels(2), training=True)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)


def test_from_scratch_trains_everything_with_lively_batch_statistics() -> None:
    model = build(from_scratch=True)
    models.thaw_backbone(model, from_scratch=True)
    norm = model.get_layer("backbone").get_layer("Conv_1_bn")
    assert norm.momentum == 0.9
    assert len(model.trainable_weights) == len(
        [w for w in model.weights if "moving_" not in w.path and "seed" not in w.path]
    )


@pytest.mark.parametrize("num_images", [1, 7])
def test_the_onnx_file_answers_as_keras_does(
    model: keras.Model, tmp_path: Path, num_images: int
) -> None:
    path = tmp_path / "model.onnx"
    models.export_onnx(model, path, ["a", "b", "c"])
    predictor = Predictor(path)
    assert predictor.class_names == ("a", "b", "c")
    assert predictor.image_size == SIZE
    images = pixels(num_images)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-5)


def test_the_onnx_file_answers_as_keras_does_on_real_photos(shared: Path, tmp_path: Path) -> None:
    model = models.build(num_classes=2, image_size=128, alpha=1.0, from_scratch=False)
    (weights,) = (shared / "weights").glob("mobilenet_v2_*_1.0_224_no_top.h5")
    models.set_backbone_weights(model, models.read_backbone_weights(str(weights), alpha=1.0))
    models.export_onnx(model, tmp_path / "model.onnx", ["a", "b"])
    photos = sorted((shared / "data" / "wild").rglob("*.*"))[::8][:200]
    images = np.stack([decode_resized(path.read_bytes(), 128) for path in photos])
    assert len(images) == 200
    difference = Predictor(tmp_path / "model.onnx").predict(images) - model.predict(
        images, verbose=0
    )
    assert np.abs(difference).max() <= 1e-4


def test_the_inference_model_loads_without_this_package(model: keras.Model, tmp_path: Path) -> None:
    models.inference_model(model).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = pixels(3)
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6
    )


class TestBackboneWeights:
    def test_are_those_of_the_file(self, tmp_path: Path) -> None:
        backbone = build().get_layer("backbone")
        backbone.save_weights(tmp_path / "backbone.weights.h5")
        read = models.read_backbone_weights(str(tmp_path / "backbone.weights.h5"), alpha=0.35)
        other = build(from_scratch=True)
        models.set_backbone_weights(other, read)
        for got, expected in zip(
            other.get_layer("backbone").get_weights(), backbone.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, expected)

    def test_of_another_width_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "backbone.weights.h5"
        build(alpha=0.5).get_layer("backbone").save_weights(path)
        with pytest.raises(models.WeightsError, match=r"of width alpha 0\.35; .* does not fit"):
            models.read_backbone_weights(str(path), alpha=0.35)

    def test_that_are_no_weights_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.h5"
        path.write_text("not HDF5")
        with pytest.raises(models.WeightsError, match=r"notes\.h5 does not fit"):
            models.read_backbone_weights(str(path), alpha=0.35)

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(models.WeightsError, match=r"existing \.h5 file; got nowhere\.h5"):
            models.read_backbone_weights("nowhere.h5", alpha=1.0)

    def test_a_failed_download_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr(keras.utils, "get_file", refuse)
        with pytest.raises(
            models.WeightsError,
            match=r"no route to host.*Put the file into .*--backbone-weights none",
        ):
            models.read_backbone_weights("imagenet", alpha=1.0)
