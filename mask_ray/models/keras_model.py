"""The Keras model: build, freeze and thaw, load weights, export to ONNX.

The model takes raw pixels and gives probabilities. Rescaling is one of its layers, so callers do
not have to know it. Imports neither Ray nor Horovod.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from mask_ray.models import mobilenet, onnx_export
from mask_ray.models.file_format import FEATURES_NAME, INPUT_NAME, OUTPUT_NAME
from mask_ray.models.fused_batch_norm import fused


def build(*, num_classes: int, image_size: int, alpha: float, from_scratch: bool) -> keras.Model:
    """Build the backbone with a small head, uncompiled, with random weights.

    Maps uint8 RGB of shape (N, image_size, image_size, 3) to probabilities of shape
    (N, num_classes).

    Args:
        num_classes: Number of classes.
        image_size: Side of the square input in pixels, one of `config.IMAGE_SIZES`.
        alpha: Width multiplier, one of `config.ALPHAS`.
        from_scratch: Whether the backbone starts from random weights. Batch norm then averages
            its statistics over about ten batches. The original momentum of 0.999 suits the
            millions of steps of ImageNet; a short run would be evaluated on statistics that are
            mostly their initial values.
    """
    backbone = mobilenet.build_keras(image_size, alpha)
    if from_scratch:
        for layer in _batch_norms(backbone):
            layer.momentum = 0.9
    return _classifier(backbone, num_classes)


def _classifier(backbone: keras.Model, num_classes: int) -> keras.Model:
    image = layers.Input(backbone.input_shape[1:], dtype="uint8", name=INPUT_NAME)
    x = layers.Rescaling(1 / mobilenet.PIXEL_CENTRE, offset=-1.0, name="rescale")(image)
    x = layers.GlobalAveragePooling2D(name=FEATURES_NAME)(backbone(x))
    x = layers.Dropout(0.2, name="dropout")(x)
    # Probabilities stay float32 where the layers below compute in fewer bits.
    head = layers.Dense(num_classes, activation="softmax", dtype="float32", name=OUTPUT_NAME)
    return keras.Model(image, head(x), name="classifier")


def fused_twin(model: keras.Model) -> keras.Model:
    """Build a model of the same architecture that compiles and trains faster: batch norm is fused.

    It has new random weights. To save it, set its weights in the other: a file of the twin could
    not be loaded without this package.

    Args:
        model: Model from `build`.
    """
    return _classifier(fused(model.get_layer("backbone")), model.output_shape[-1])


def _batch_norms(backbone: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in backbone.layers if isinstance(layer, layers.BatchNormalization)]


def head_of(model: keras.Model) -> keras.Model:
    """Return the layers above the features as a model: (N, features) to probabilities.

    It shares the layers, so training it trains the model.
    """
    features = layers.Input(model.get_layer(FEATURES_NAME).output.shape[1:], name=FEATURES_NAME)
    x = model.get_layer("dropout")(features)
    return keras.Model(features, model.get_layer(OUTPUT_NAME)(x), name="head")


def thaw_backbone(model: keras.Model, finetune_from: str | None = None) -> None:
    """Make the backbone trainable, or only its blocks from `finetune_from` up. Compile afterwards.

    In fine-tuning, batch norm stays in inference mode: its statistics come from far more images
    than fine-tuning sees. See https://keras.io/guides/transfer_learning.

    Args:
        model: Model from `build`.
        finetune_from: One of `config.BLOCKS`; None trains everything, batch norm too.
    """
    backbone = model.get_layer("backbone")
    backbone.trainable = True
    if finetune_from is None:
        return
    names = [layer.name for layer in backbone.layers]
    for layer in backbone.layers[: mobilenet.first_layer_of(finetune_from, names)]:
        layer.trainable = False
    for layer in _batch_norms(backbone):
        layer.trainable = False


def load_backbone_weights(model: keras.Model, weights: list[NDArray[np.float32]]) -> None:
    """Set the backbone's weights, given in the order of `mobilenet.read_h5`."""
    model.get_layer("backbone").set_weights(weights)


def export_onnx(model: keras.Model, path: Path, class_names: list[str], alpha: float) -> None:
    """Write the model as ONNX: `image` uint8 (N, S, S, 3) in, `probabilities` (N, classes) out.

    Float32 throughout, also where the model computes in fewer bits.

    Args:
        model: Model from `build`.
        path: File to write.
        class_names: Names for the file's metadata, which also holds the image size.
        alpha: The model's width multiplier.
    """
    backbone = onnx_export.backbone_onnx(
        model.get_layer("backbone").get_weights(), image_size=model.input_shape[1], alpha=alpha
    )
    kernel, bias = model.get_layer(OUTPUT_NAME).get_weights()
    path.write_bytes(onnx_export.classifier_onnx(backbone, kernel, bias, class_names))
