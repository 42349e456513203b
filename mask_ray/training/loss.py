"""The loss that training minimises: cross-entropy, with classes weighted if a run asks for it."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def loss_of(class_weights: Sequence[float] | None) -> str | Loss:
    """Return the loss to compile a model with, for training and validation.

    With weights, an image's loss is multiplied by the weight of its class, and the mean is over
    the number of images. Workers take batches of one size, so that the mean over the workers is
    the mean over all images, however the classes are spread over the workers.

    Args:
        class_weights: Weight of each class, the same on all workers; None for no weights.
    """
    if class_weights is None:
        return "sparse_categorical_crossentropy"
    weights = tf.constant(class_weights, tf.float32)

    def weighted(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        return losses * tf.cast(tf.gather(weights, labels), losses.dtype)

    return weighted
