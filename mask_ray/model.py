"""The Keras model: build, freeze and thaw, save, export to ONNX.

The model takes raw pixels and gives probabilities; rescaling is a layer of it, so nothing outside
has to know it. No Ray and no Horovod here.
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path

import keras
import onnx
from keras import layers
from onnx import numpy_helper

from mask_ray.progress import quiet_libraries
from mask_ray.weights import WeightsError

INPUT_NAME = "image"
FEATURES_NAME = "features"
OUTPUT_NAME = "probabilities"


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
    backbone = _backbone(image_size, alpha)
    if from_scratch:
        for layer in _batch_norms(backbone):
            layer.momentum = 0.9
    image = layers.Input((image_size, image_size, 3), dtype="uint8", name=INPUT_NAME)
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(image)
    x = layers.GlobalAveragePooling2D(name=FEATURES_NAME)(backbone(x))
    x = layers.Dropout(0.2, name="dropout")(x)
    # Probabilities stay float32 where the layers below compute in fewer bits.
    head = layers.Dense(num_classes, activation="softmax", dtype="float32", name=OUTPUT_NAME)
    return keras.Model(image, head(x), name="classifier")


def _backbone(image_size: int, alpha: float) -> keras.Model:
    return keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3),
        alpha=alpha,
        include_top=False,
        weights=None,
        name="backbone",
    )


def _batch_norms(backbone: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in backbone.layers if isinstance(layer, layers.BatchNormalization)]


def head_of(model: keras.Model) -> keras.Model:
    """The layers above the features, as a model: (N, features) to probabilities.

    It shares the layers, so training it trains the model.
    """
    features = layers.Input(model.get_layer(FEATURES_NAME).output.shape[1:], name=FEATURES_NAME)
    x = model.get_layer("dropout")(features)
    return keras.Model(features, model.get_layer(OUTPUT_NAME)(x), name="head")


def thaw_backbone(model: keras.Model, finetune_from: str | None = None) -> None:
    """Make the backbone trainable, or the blocks from `finetune_from` on. Compile afterwards.

    In fine-tuning, batch norm stays in inference mode: its statistics come from far more images
    than fine-tuning sees. See https://keras.io/guides/transfer_learning.

    Args:
        model: From `build`.
        finetune_from: One of `config.BLOCKS`; None trains everything, batch norm too.
    """
    backbone = model.get_layer("backbone")
    backbone.trainable = True
    if finetune_from is None:
        return
    first = _first_layer(backbone, finetune_from)
    for layer in backbone.layers[:first]:
        layer.trainable = False
    for layer in _batch_norms(backbone):
        layer.trainable = False


def _first_layer(backbone: keras.Model, block: str) -> int:
    # Keras calls the first block of the paper's table, which expands nothing, "expanded_conv".
    prefix = {"stem": "Conv1", "top": "Conv_1"}.get(block, f"{block}_")
    names = [layer.name for layer in backbone.layers]
    return next(index for index, name in enumerate(names) if name.startswith(prefix))


def load_backbone_weights(model: keras.Model, encoded: bytes, alpha: float) -> None:
    """Give the model's backbone the weights of an .h5 file.

    Args:
        model: From `build`.
        encoded: The file's content.
        alpha: The model's width multiplier, for the message.

    Raises:
        WeightsError: the file is not one, or of another model or width.
    """
    # Keras tells its formats apart by the file's name. The older one, in which the ImageNet
    # weights come, lists its layers under this key.
    suffix = ".h5" if b"layer_names" in encoded else ".weights.h5"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(encoded)
        file.flush()
        try:
            model.get_layer("backbone").load_weights(file.name)
        except Exception as error:  # h5py's and Keras's own share no base class
            raise WeightsError(
                "backbone_weights must be of MobileNetV2 without top and of width alpha "
                f"{alpha}; the file does not fit: {str(error).splitlines()[0]}"
            ) from error


def export_backbone(model: keras.Model, path: Path) -> None:
    """Write what lies below the head as ONNX: `image` uint8 (N, S, S, 3) to `features` (N, D).

    Float32 throughout, also where the model computes in fewer bits.
    """
    image_size = model.input_shape[1]
    backbone = keras.Model(model.input, model.get_layer(FEATURES_NAME).output, name="features")
    # Keras refuses to export a model that was never called.
    backbone(keras.ops.zeros((1, image_size, image_size, 3), dtype="uint8"))
    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    with quiet_libraries(), warnings.catch_warnings(action="ignore"):
        backbone.export(path, format="onnx", verbose=False)
    exported = onnx.load(path)
    _rename_output(exported.graph, FEATURES_NAME)
    for value in (*exported.graph.input, *exported.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(exported, {"image_size": str(image_size)})
    onnx.checker.check_model(exported)
    onnx.save(exported, path)


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    """tf2onnx calls the only output `Identity:0`."""
    (output,) = graph.output
    old, output.name = output.name, name
    for node in graph.node:
        node.output[:] = [name if value == old else value for value in node.output]
        node.input[:] = [name if value == old else value for value in node.input]


def export_onnx(model: keras.Model, path: Path, class_names: list[str]) -> None:
    """Write the model as ONNX: `image` uint8 (N, S, S, 3) in, `probabilities` (N, classes) out.

    The file's metadata holds `class_names` (JSON) and `image_size`, so it explains itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder, "backbone.onnx")
        export_backbone(model, backbone)
        attach_head(backbone.read_bytes(), model, path, class_names)


def attach_head(
    backbone_onnx: bytes, model: keras.Model, path: Path, class_names: list[str]
) -> None:
    """Join an exported backbone and the model's head into one ONNX file; see `export_onnx`."""
    joined = onnx.load_from_string(backbone_onnx)
    kernel, bias = (weight.numpy() for weight in model.get_layer(OUTPUT_NAME).weights)
    graph = joined.graph
    graph.initializer.extend(
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")]
    )
    graph.node.extend(
        [
            onnx.helper.make_node("Gemm", [FEATURES_NAME, "kernel", "bias"], ["logits"]),
            onnx.helper.make_node("Softmax", ["logits"], [OUTPUT_NAME], axis=1),
        ]
    )
    del graph.output[:]
    shape = ["batch", len(class_names)]
    graph.output.append(
        onnx.helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, shape)
    )
    props = {"class_names": json.dumps(class_names), "image_size": str(model.input_shape[1])}
    onnx.helper.set_model_props(joined, props)
    onnx.checker.check_model(joined)
    onnx.save(joined, path)
