"""Batch norm as one TensorFlow operation, for training.

Keras 3 composes batch norm of about 20 operations, and as many for its gradient, for each of the
52 layers of the backbone: most of what TensorFlow has to trace and optimize before the first step.
Weights and results are those of Keras's layer.
"""

from typing import Any

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm over the last axis of (N, H, W, C), with scale and offset."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize by the batch in training, and else by the moving averages."""
        moving_mean, moving_variance = self.moving_mean.value, self.moving_variance.value
        by_batch = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[] if by_batch else moving_mean,
            variance=[] if by_batch else moving_variance,
            epsilon=self.epsilon,
            is_training=by_batch,
        )
        if by_batch:
            # The operation divides the sum of squares by n - 1, Keras by n.
            n = tf.cast(tf.shape(inputs)[0] * inputs.shape[1] * inputs.shape[2], tf.float32)
            share = 1 - self.momentum
            moving_mean.assign_sub((moving_mean - mean) * share)
            moving_variance.assign_sub((moving_variance - variance * ((n - 1) / n)) * share)
        return outputs


def fused(network: keras.Model) -> keras.Model:
    """Return a new network of the same architecture, with new weights, whose batch norm is fused.

    Args:
        network: Functional model without nested models.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_norm = type(layer) is keras.layers.BatchNormalization
        cloned = FusedBatchNormalization if is_norm else type(layer)
        return cloned.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=clone)
