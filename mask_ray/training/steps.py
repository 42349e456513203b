"""Keras's own training and test steps, compiled once for batches of any length."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mask_ray.horovod.keras import any_worker

# Takes a batch and its labels; changes the model's weights and metrics. Returns whether the loss
# was finite on all workers.
TrainStep = Callable[[NDArray[Any], NDArray[np.int64]], tf.Tensor]
# Takes a batch and its labels; changes the model's metrics.
TestStep = Callable[[NDArray[Any], NDArray[np.int64]], None]


def compiled_steps(model: keras.Model) -> tuple[TrainStep, TestStep]:
    """Return the training and the test step of a compiled model."""
    shape, dtype = model.input_shape[1:], model.input.dtype
    # Metrics create their variables on first use. Without this call that would happen inside a
    # compiled step, which TensorFlow would then compile a second time.
    model.test_step((np.zeros((1, *shape), dtype), np.zeros(1, np.int64)))
    signature = [tf.TensorSpec((None, *shape), dtype), tf.TensorSpec((None,), tf.int64)]

    def train_step(batch: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        # The mean over the steps since the last reset: not finite from the first such loss on.
        loss = model.train_step((batch, label))["loss"]
        return tf.logical_not(any_worker(tf.logical_not(tf.math.is_finite(loss))))

    def test_step(batch: tf.Tensor, label: tf.Tensor) -> None:
        model.test_step((batch, label))

    # Without AutoGraph, as Keras compiles them: it would only make tracing longer.
    compiled = partial(tf.function, input_signature=signature, autograph=False)
    return compiled(train_step), compiled(test_step)
