"""The Keras model: build, freeze and thaw, save, export to ONNX.

The model takes raw pixels and gives probabilities; rescaling and augmentation are layers of it,
so nothing outside has to know them. No Ray and no Horovod here.
"""

import json
import os
from pathlib import Path

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray

from mask_ray.config import IMAGE_SIZES, MaskRayError

INPUT_NAME = "image"
OUTPUT_NAME = "probabilities"
WEIGHTS_FILE = "model.weights.h5"

# Fine-tuning trains from here up: the last quarter of the backbone, where features are specific.
FINETUNE_FROM = "block_13_expand"

# Where Keras itself takes them from. The 224 px checkpoint serves every image size: the
# weights of convolutions do not depend on it, and there is one file to fetch or mirror.
_WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
_WEIGHTS_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"


def build(*, num_classes: int, image_size: int, alpha: float, from_scratch: bool) -> keras.Model:
    """MobileNetV2 with a small head, uncompiled, with random weights.

    Maps uint8 RGB of shape (N, image_size, image_size, 3) to probabilities of shape
    (N, num_classes).

    Args:
        num_classes: Classes to tell apart.
        image_size: Side of the square input in pixels, one of `config.IMAGE_SIZES`.
        alpha: Width multiplier, one of `config.ALPHAS`.
        from_scratch: Let batch norm follow its statistics ten batches at a time. The original
            0.999 suits the millions of steps of ImageNet; a short run would be evaluated on
            statistics that are mostly their initial values.
    """
    image = layers.Input((image_size, image_size, 3), dtype="uint8", name=INPUT_NAME)
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(image)
    x = _augmentation()(x)
    backbone = _backbone(image_size, alpha)
    if from_scratch:
        for layer in _batch_norms(backbone):
            layer.momentum = 0.9
    x = backbone(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(
        image,
        layers.Dense(num_classes, activation="softmax", name=OUTPUT_NAME)(x),
        name="classifier",
    )


def _backbone(image_size: int, alpha: float) -> keras.Model:
    return keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3),
        alpha=alpha,
        include_top=False,
        weights=None,
        name="backbone",
    )


def _augmentation() -> keras.Sequential:
    """Random views of a face: mirrored, turned, nearer, darker. Identity in inference."""
    light = {"value_range": (-1.0, 1.0)}
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.05, fill_mode="nearest"),
            layers.RandomZoom(0.15, fill_mode="nearest"),
            layers.RandomBrightness(0.15, **light),
            layers.RandomContrast(0.2, **light),
        ],
        name="augment",
    )


def _batch_norms(backbone: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in backbone.layers if isinstance(layer, layers.BatchNormalization)]


def freeze_backbone(model: keras.Model) -> None:
    """Leave only the head trainable. Compile afterwards."""
    model.get_layer("backbone").trainable = False


def thaw_backbone(model: keras.Model, *, from_scratch: bool) -> None:
    """Make the backbone trainable. Compile afterwards.

    Trained from scratch, all of it is; else the blocks from `FINETUNE_FROM` on, with batch
    norm kept in inference mode: its statistics come from far more images than fine-tuning
    sees. See https://keras.io/guides/transfer_learning.
    """
    backbone = model.get_layer("backbone")
    backbone.trainable = True
    if from_scratch:
        return
    names = [layer.name for layer in backbone.layers]
    for layer in backbone.layers[: names.index(FINETUNE_FROM)]:
        layer.trainable = False
    for layer in _batch_norms(backbone):
        layer.trainable = False


class WeightsError(MaskRayError):
    """The backbone's weights cannot be had or do not fit; the message says what would."""


def read_backbone_weights(backbone_weights: str, alpha: float) -> list[NDArray[np.float32]]:
    """Weights of MobileNetV2 without top, in the order of `set_backbone_weights`.

    Args:
        backbone_weights: `imagenet` (downloaded by Keras unless it has them), or the path of an
            .h5 file.
        alpha: Width multiplier, one of `config.ALPHAS`.

    Raises:
        WeightsError: no such file, the download failed, or the file is of another model or width.
    """
    path = _download(alpha) if backbone_weights == "imagenet" else Path(backbone_weights)
    if not path.expanduser().is_file():
        raise WeightsError(
            f"backbone_weights must be imagenet, none or an existing .h5 file; got {path}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    backbone = _backbone(min(IMAGE_SIZES), alpha)
    try:
        backbone.load_weights(path.expanduser())
    except Exception as error:
        raise WeightsError(
            f"backbone_weights must be of MobileNetV2 without top and of width alpha {alpha}; "
            f"{path} does not fit: {str(error).splitlines()[0]}"
        ) from error
    return backbone.get_weights()


def _download(alpha: float) -> Path:
    name = _WEIGHTS_FILE.format(alpha=float(alpha))
    try:
        return Path(keras.utils.get_file(name, _WEIGHTS_URL + name, cache_subdir="models"))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"backbone_weights imagenet: the download failed ({reason}). Put the file into "
            f"{_keras_home() / 'models'}, or pass its path as "
            "--backbone-weights, or train without it by --backbone-weights none"
        ) from error


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


def set_backbone_weights(model: keras.Model, weights: list[NDArray[np.float32]]) -> None:
    """Give the model's backbone the weights that `read_backbone_weights` read."""
    model.get_layer("backbone").set_weights(weights)


def inference_model(model: keras.Model) -> keras.Model:
    """The same layers without augmentation and dropout; it shares the model's weights.

    Augmentation has operations that ONNX lacks, and an exported graph would keep them.
    """
    image = layers.Input(model.input_shape[1:], dtype="uint8", name=INPUT_NAME)
    x = model.get_layer("rescale")(image)
    x = model.get_layer("backbone")(x, training=False)
    x = model.get_layer("pool")(x)
    return keras.Model(image, model.get_layer(OUTPUT_NAME)(x), name=model.name)


def export_onnx(model: keras.Model, path: Path, class_names: list[str]) -> None:
    """Write the model as ONNX: `image` uint8 (N, S, S, 3) in, `probabilities` (N, classes) out.

    The file's metadata holds `class_names` (JSON) and `image_size`, so it explains itself.
    """
    image_size = model.input_shape[1]
    model = inference_model(model)
    # Keras refuses to export a model that was never called.
    model(keras.ops.zeros((1, image_size, image_size, 3), dtype="uint8"))
    model.export(path, format="onnx", verbose=False)
    exported = onnx.load(path)
    _rename_output(exported.graph, OUTPUT_NAME)
    for value in (*exported.graph.input, *exported.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(
        exported, {"class_names": json.dumps(class_names), "image_size": str(image_size)}
    )
    onnx.checker.check_model(exported)
    onnx.save(exported, path)


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    """tf2onnx calls the only output `Identity:0`."""
    (output,) = graph.output
    old, output.name = output.name, name
    for node in graph.node:
        node.output[:] = [name if value == old else value for value in node.output]
        node.input[:] = [name if value == old else value for value in node.input]
