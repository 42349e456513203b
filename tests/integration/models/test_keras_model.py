"""The Keras model: what it maps, what is trained when, and its ONNX twin."""

from pathlib import Path

import keras
import numpy as np
import pytest

from mask_ray.config import BLOCKS
from mask_ray.images.decode import decode_resized
from mask_ray.models import keras_model as models
from mask_ray.models import mobilenet, onnx_edit
from mask_ray.models.predictor import Predictor
from tests.support import keras_models

SIZE = 96
NAMES = ["a", "b", "c"]


def pixels(num_images: int) -> np.ndarray:
    """Noise of many colours, each image its own."""
    rng = np.random.default_rng(0)
    tints = rng.uniform(0.1, 1, (16, 1, 1, 3))[:num_images]
    return (tints * rng.integers(0, 256, (num_images, SIZE, SIZE, 3))).astype(np.uint8)


def build(alpha: float = 0.35, seed: int = 0) -> keras.Model:
    return keras_models.build(pixels(16), len(NAMES), alpha=alpha, seed=seed)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build()


def features_of(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, model.get_layer("features").output)


def assert_alike(some: np.ndarray, others: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(some, others, rtol=0, atol=tolerance)


def test_maps_raw_pixels_to_probabilities(model: keras.Model) -> None:
    probabilities = model.predict(pixels(5), verbose=0)
    assert probabilities.shape == (5, 3)
    assert np.ptp(probabilities, axis=0).min() > 0.01
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_head_is_the_model_s_own() -> None:
    """Trained on features, it is trained in the model."""
    model = build()
    head, images = models.head_of(model), pixels(6)
    features = features_of(model).predict(images, verbose=0)
    assert_alike(head.predict(features, verbose=0), model.predict(images, verbose=0), 1e-6)
    backbone = model.get_layer("backbone").get_weights()

    head.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    before = model.predict(images, verbose=0)
    head.train_on_batch(features, np.array([0, 1, 2, 0, 1, 2]))

    assert np.abs(model.predict(images, verbose=0) - before).max() > 1e-4
    assert_alike(head.predict(features, verbose=0), model.predict(images, verbose=0), 1e-6)
    for now, then in zip(model.get_layer("backbone").get_weights(), backbone, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_head_has_nothing_else_to_train(model: keras.Model) -> None:
    assert [weight.path for weight in models.head_of(model).trainable_weights] == [
        "probabilities/kernel",
        "probabilities/bias",
    ]


def thaw(model: keras.Model, block: str) -> None:
    """As of a new model, whose layers are all trainable."""
    for layer in model.get_layer("backbone").layers:
        layer.trainable = True
    models.thaw_backbone(model, finetune_from=block)


def trained_layers(model: keras.Model) -> set[str]:
    """Of the backbone."""
    backbone = model.get_layer("backbone")
    return {weight.path.split("/")[-2] for weight in backbone.trainable_weights}


# In the order of the paper's table. Block 0 is the one that Keras calls "expanded_conv".
CONVOLUTIONS = [
    ("stem", "Conv1"),
    ("stem", "expanded_conv_depthwise"),
    ("stem", "expanded_conv_project"),
    *(
        (f"block_{number}", f"block_{number}_{kind}")
        for number in range(1, 17)
        for kind in ("expand", "depthwise", "project")
    ),
    ("top", "Conv_1"),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_fine_tuning_trains_from_its_block_on_but_no_batch_norm(
    model: keras.Model, block: str
) -> None:
    thaw(model, block)
    expected = {name for b, name in CONVOLUTIONS if BLOCKS.index(b) >= BLOCKS.index(block)}
    assert trained_layers(model) == expected
    assert {weight.path for weight in model.trainable_weights} >= {"probabilities/kernel"}


@pytest.mark.parametrize("block", ["stem", "block_13", "top"])
def test_fine_tuning_leaves_batch_statistics_alone(model: keras.Model, block: str) -> None:
    thaw(model, block)
    norms = [
        layer
        for layer in model.get_layer("backbone").layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [norm.moving_mean.numpy() for norm in norms]
    model(pixels(2), training=True)
    for norm, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(norm.moving_mean.numpy(), mean)


def test_from_scratch_trains_everything_with_lively_batch_statistics() -> None:
    model = models.build(num_classes=3, image_size=SIZE, alpha=0.35, from_scratch=True)
    models.thaw_backbone(model)
    norm = model.get_layer("backbone").get_layer("Conv_1_bn")
    assert norm.momentum == 0.9
    assert len(model.trainable_weights) == len(
        [w for w in model.weights if "moving_" not in w.path and "seed" not in w.path]
    )
    before = norm.moving_mean.numpy()
    model(pixels(2), training=True)
    assert (norm.moving_mean.numpy() != before).any()


def test_without_from_scratch_batch_statistics_are_as_slow_as_keras_s(model: keras.Model) -> None:
    assert model.get_layer("backbone").get_layer("Conv_1_bn").momentum == 0.999


class TestOnnx:
    @pytest.mark.parametrize("num_images", [1, 7])
    def test_answers_as_keras_does(
        self, model: keras.Model, tmp_path: Path, num_images: int
    ) -> None:
        path = tmp_path / "model.onnx"
        models.export_onnx(model, path, NAMES, alpha=0.35)
        predictor = Predictor(path)
        assert predictor.class_names == tuple(NAMES)
        assert predictor.image_size == SIZE
        images = pixels(num_images)
        assert_alike(predictor.predict(images), model.predict(images, verbose=0), 1e-5)

    def test_calibrated_it_answers_as_the_calibrated_keras_file_does(
        self, model: keras.Model, tmp_path: Path
    ) -> None:
        onnx, saved = tmp_path / "model.onnx", tmp_path / "model.keras"
        models.export_onnx(model, onnx, NAMES, alpha=0.35)
        model.save(saved)
        onnx.write_bytes(onnx_edit.with_temperature(onnx.read_bytes(), 3.0))
        saved.write_bytes(onnx_edit.keras_with_temperature(saved.read_bytes(), 3.0))

        answers = Predictor(onnx).predict(pixels(4))

        loaded = keras.models.load_model(saved)
        assert_alike(answers, loaded.predict(pixels(4), verbose=0), 1e-5)
        assert np.abs(answers - model.predict(pixels(4), verbose=0)).max() > 0.01

    def test_answers_as_keras_does_on_real_photos(self, shared: Path, tmp_path: Path) -> None:
        model = models.build(num_classes=2, image_size=128, alpha=1.0, from_scratch=False)
        (weights,) = (shared / "weights").glob("mobilenet_v2_*_1.0_224_no_top.h5")
        models.load_backbone_weights(model, mobilenet.read_h5(weights.read_bytes(), alpha=1.0))
        models.export_onnx(model, tmp_path / "model.onnx", ["a", "b"], alpha=1.0)
        photos = sorted((shared / "data" / "wild").rglob("*.*"))[::8][:200]
        images = np.stack([decode_resized(path.read_bytes(), 128) for path in photos])
        assert len(images) == 200
        answers = Predictor(tmp_path / "model.onnx").predict(images)
        assert_alike(answers, model.predict(images, verbose=0), 1e-4)


@pytest.fixture
def in_bfloat16() -> keras.Model:
    """A model that computes in bfloat16; what is built after it computes in float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    return model


class TestBfloat16:
    def test_keeps_weights_and_probabilities_in_float32(self, in_bfloat16: keras.Model) -> None:
        assert {str(weight.dtype) for weight in in_bfloat16.trainable_weights} == {"float32"}
        assert in_bfloat16.get_layer("features").output.dtype == "bfloat16"
        probabilities = in_bfloat16.predict(pixels(3), verbose=0)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)

    def test_weights_carried_over_answer_as_keras_does_in_float32(
        self, in_bfloat16: keras.Model, tmp_path: Path
    ) -> None:
        model = build(seed=1)
        model.set_weights(in_bfloat16.get_weights())
        images = pixels(5)
        expected = model.predict(images, verbose=0)
        models.export_onnx(model, tmp_path / "model.onnx", NAMES, alpha=0.35)
        assert_alike(Predictor(tmp_path / "model.onnx").predict(images), expected, 1e-4)


def test_the_saved_model_loads_without_this_package(model: keras.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = pixels(3)
    assert_alike(loaded.predict(images, verbose=0), model.predict(images, verbose=0), 1e-6)
