"""A classifier with random weights whose answers depend on the image."""

from collections.abc import Sequence

import keras
import numpy as np

from mask_ray.models import keras_model as models
from mask_ray.models.file_format import FEATURES_NAME


def build(
    images: np.ndarray, num_classes: int, *, alpha: float = 0.35, seed: int = 0
) -> keras.Model:
    """Of the images' size, with batch norm as after many epochs on them.

    Fresh batch norm normalises nothing: features would be of the order of 1e-11.
    """
    keras.utils.set_random_seed(seed)
    model = models.build(
        num_classes=num_classes, image_size=images.shape[1], alpha=alpha, from_scratch=False
    )
    norms = [
        layer
        for layer in model.get_layer("backbone").layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def features_of(model: keras.Model, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """What the backbone makes of the images, by Keras itself; shape (N, D)."""
    backbone = keras.Model(model.input, model.get_layer(FEATURES_NAME).output)
    return np.asarray(backbone.predict(np.stack(images), verbose=0))
