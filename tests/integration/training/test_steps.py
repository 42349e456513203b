"""The steps of a worker: when a loss is not finite, and how classes are weighted."""

from collections.abc import Iterator

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf

from mask_ray.training.loss import loss_of
from mask_ray.training.steps import compiled_steps


@pytest.fixture(scope="module", autouse=True)
def horovod() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


def compiled(class_weights: tuple[float, ...] | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    rows = keras.layers.Input((4,))
    model = keras.Model(rows, keras.layers.Dense(2, "softmax")(rows))
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, loss_of(class_weights), metrics=["accuracy"], jit_compile=False)
    return model


ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
LABELS = np.array([0, 1, 1, 1, 1, 1, 1, 1], np.int64)


def test_a_step_says_from_when_on_the_loss_is_not_finite() -> None:
    model = compiled()
    train_step, _ = compiled_steps(model)
    bad = ROWS.copy()
    bad[3, 2] = np.nan
    assert [bool(train_step(rows, LABELS)) for rows in (ROWS, ROWS, bad, ROWS)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_weights_multiply_the_losses_of_their_class() -> None:
    weights = (4.0, 4 / 7)
    probabilities = tf.constant([[0.9, 0.1]] * 8)
    losses = keras.losses.get(loss_of(weights))(tf.constant(LABELS), probabilities)
    expected = np.where(LABELS == 0, -4 * np.log(0.9), -4 / 7 * np.log(0.1))
    np.testing.assert_allclose(np.asarray(losses), expected, rtol=1e-5)


def test_the_mean_over_workers_is_the_mean_over_all_images() -> None:
    """One worker has all images of the rare class."""
    whole, first, second = (compiled((4.0, 4 / 7)) for _ in range(3))
    for model, rows in ((whole, slice(None)), (first, slice(4)), (second, slice(4, 8))):
        _, test_step = compiled_steps(model)
        model.reset_metrics()
        test_step(ROWS[rows], LABELS[rows])
    losses = [model.get_metrics_result()["loss"] for model in (whole, first, second)]
    assert float(losses[0]) == pytest.approx(float(losses[1] + losses[2]) / 2, rel=1e-6)


def test_weights_count_in_the_loss_of_training_and_of_validation_but_not_in_accuracy() -> None:
    plain, weighted = compiled(), compiled((0.0, 1.0))
    for model in (plain, weighted):
        _, test_step = compiled_steps(model)
        model.reset_metrics()
        test_step(ROWS[:1], LABELS[:1])
    results = [model.get_metrics_result() for model in (plain, weighted)]
    assert float(results[0]["loss"]) > 0
    assert float(results[1]["loss"]) == 0
    assert float(results[0]["accuracy"]) == float(results[1]["accuracy"])

    train_step, _ = compiled_steps(weighted)
    before = weighted.get_weights()
    train_step(ROWS[:1], LABELS[:1])
    for old, new in zip(before, weighted.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
