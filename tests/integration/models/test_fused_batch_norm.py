"""Fused batch norm against Keras's own: answers, gradients, and moving averages."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from mask_ray.models import keras_model
from mask_ray.models.fused_batch_norm import FusedBatchNormalization

SIDE = 96
IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1, 1, 0])


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def twins() -> tuple[keras.Model, keras.Model]:
    """One model as it is saved and one as it is trained, with the same weights."""
    plain = keras_model.build(num_classes=2, image_size=SIDE, alpha=0.35, from_scratch=True)
    trained = keras_model.fused_twin(plain)
    trained.set_weights(plain.get_weights())
    return plain, trained


def step(model: keras.Model) -> tuple[float, list[np.ndarray]]:
    """One pass in training: the loss and the gradient of each weight."""
    keras.utils.set_random_seed(0)
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(LABELS, model(IMAGES, training=True))
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    return float(loss), [gradient.numpy() for gradient in gradients]


def norms(model: keras.Model) -> list[keras.layers.Layer]:
    layers = model.get_layer("backbone").layers
    return [one for one in layers if isinstance(one, keras.layers.BatchNormalization)]


def without_dropout(*models: keras.Model) -> None:
    for model in models:
        model.get_layer("dropout").rate = 0


def test_a_step_is_that_of_keras() -> None:
    plain, trained = twins()
    without_dropout(plain, trained)
    (loss, gradients), (fused_loss, fused_gradients) = step(plain), step(trained)
    assert fused_loss == pytest.approx(loss, rel=1e-4)
    flat, fused_flat = (
        np.concatenate([g.ravel() for g in x]) for x in (gradients, fused_gradients)
    )
    assert np.abs(flat - fused_flat).max() < 1e-2 * np.abs(flat).max()
    for weight, fused_weight in zip(plain.weights, trained.weights, strict=True):
        np.testing.assert_allclose(fused_weight.numpy(), weight.numpy(), rtol=1e-3, atol=1e-5)
    moved = [norm.moving_variance.numpy() for norm in norms(trained)]
    assert all(np.ptp(values) > 0 for values in moved)
    np.testing.assert_allclose(trained(IMAGES), plain(IMAGES), atol=1e-4)


def test_frozen_norms_keep_their_averages_and_pass_gradients_on() -> None:
    plain, trained = twins()
    without_dropout(plain, trained)
    for model in (plain, trained):
        keras_model.thaw_backbone(model, "block_13")
    before = [norm.moving_mean.numpy() for norm in norms(trained)]
    (loss, gradients), (fused_loss, fused_gradients) = step(plain), step(trained)
    assert fused_loss == pytest.approx(loss, rel=1e-4)
    for gradient, fused_gradient in zip(gradients, fused_gradients, strict=True):
        np.testing.assert_allclose(fused_gradient, gradient, rtol=1e-2, atol=1e-6)
    for mean, norm in zip(before, norms(trained), strict=True):
        np.testing.assert_array_equal(norm.moving_mean.numpy(), mean)


def test_of_one_image_the_averages_are_keras_s_too() -> None:
    """The last batch of an epoch may hold one; the feature map may be one pixel."""
    layers = [
        kind(momentum=0.5) for kind in (keras.layers.BatchNormalization, FusedBatchNormalization)
    ]
    pixel = np.array([[[[3.0, -2.0]]]], np.float32)
    for layer in layers:
        layer(pixel, training=True)
    for weight, fused_weight in zip(*(layer.weights for layer in layers), strict=True):
        np.testing.assert_allclose(fused_weight.numpy(), weight.numpy(), rtol=1e-6)


def test_computes_in_the_precision_of_the_policy() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    plain, trained = twins()
    without_dropout(plain, trained)
    (loss, _), (fused_loss, gradients) = step(plain), step(trained)
    assert norms(trained)[0].compute_dtype == "bfloat16"
    assert fused_loss == pytest.approx(loss, rel=0.05)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_every_norm_of_the_backbone_is_fused_only_for_training() -> None:
    plain, trained = twins()
    assert {type(norm) for norm in norms(plain)} == {keras.layers.BatchNormalization}
    assert {type(norm) for norm in norms(trained)} == {FusedBatchNormalization}
    assert len(norms(trained)) == len(norms(plain)) == 52
    assert {norm.momentum for norm in norms(trained)} == {0.9}
    names, plain_names = (
        [layer.name for layer in model.get_layer("backbone").layers] for model in (trained, plain)
    )
    assert names[1:] == plain_names[1:]  # the first is the input
