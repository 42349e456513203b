"""ONNX files written from weights: the backbone alone, or with its head.

The architecture is a short table, so its graph is written from that directly, with batch norm
folded into the convolutions: in a fraction of a second, where a converter has to import
TensorFlow and trace the model first. The tests hold it to Keras's own.
"""

import json

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mask_ray.models.mobilenet import (
    FEATURES_NAME,
    INPUT_NAME,
    OUTPUT_NAME,
    Array,
    Layer,
    to_layers,
)

_OPSET = 17
_IR_VERSION = 8


def backbone_onnx(weights: list[Array], *, image_size: int, alpha: float) -> bytes:
    """The network up to the pooled features, as an ONNX file.

    It takes `image`, uint8 RGB of shape (N, image_size, image_size, 3), and gives `features`,
    float32 of shape (N, D). Rescaling to -1..1 is part of it.

    Args:
        weights: In the order of `read_h5`, which is also that of Keras's `get_weights`.
        image_size: Side of the input in pixels, a multiple of 32.
        alpha: Width multiplier that the weights are of.
    """
    graph = _Graph()
    graph.add("Transpose", [INPUT_NAME], perm=[0, 3, 1, 2])
    graph.add("Cast", [graph.last], to=TensorProto.FLOAT)
    middle, scale = graph.constant(np.float32(127.5)), graph.constant(np.float32(1 / 127.5))
    outputs = [graph.add("Mul", [graph.add("Sub", [graph.last, middle]), scale])]
    for layer in to_layers(weights, alpha):
        graph.add_layer(layer)
        if layer.convolution.adds_input:
            graph.add("Add", [graph.last, outputs[-3]])
        outputs.append(graph.last)
    graph.add("GlobalAveragePool", [graph.last])
    graph.add("Flatten", [graph.last], output=FEATURES_NAME)
    num_features = len(weights[-1])
    image = helper.make_tensor_value_info(
        INPUT_NAME, TensorProto.UINT8, ["batch", image_size, image_size, 3]
    )
    features = helper.make_tensor_value_info(
        FEATURES_NAME, TensorProto.FLOAT, ["batch", num_features]
    )
    return _encoded(
        helper.make_graph(graph.nodes, "mobilenet_v2", [image], [features], graph.constants),
        {"image_size": str(image_size)},
    )


def classifier_onnx(backbone: bytes, kernel: Array, bias: Array, class_names: list[str]) -> bytes:
    """A backbone from `backbone_onnx` with a head: `image` to `probabilities` (N, classes).

    The file's metadata holds `class_names` (JSON) and `image_size`, so it explains itself.

    Args:
        backbone: The encoded ONNX file.
        kernel: Of the dense layer, shape (D, classes).
        bias: Of the dense layer, shape (classes,).
        class_names: One a column of the kernel.
    """
    model = onnx.load_from_string(backbone)
    graph = model.graph
    graph.initializer.extend(
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")]
    )
    graph.node.extend(
        [
            helper.make_node("Gemm", [FEATURES_NAME, "kernel", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [OUTPUT_NAME], axis=1),
        ]
    )
    del graph.output[:]
    shape = ["batch", len(class_names)]
    graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, shape))
    (image_size,) = (p.value for p in model.metadata_props if p.key == "image_size")
    return _encoded(graph, {"class_names": json.dumps(class_names), "image_size": image_size})


def _encoded(graph: onnx.GraphProto, metadata: dict[str, str]) -> bytes:
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString()
    return encoded


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    @property
    def last(self) -> str:
        """Name of the last node's output."""
        name: str = self.nodes[-1].output[0]
        return name

    def constant(self, value: NDArray[np.float32] | np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def add_layer(self, layer: Layer) -> None:
        convolution = layer.convolution
        kernel, bias = (self.constant(value) for value in layer.folded())
        side = convolution.kernel_shape[0]
        # "Same" padding of an even side that a stride of 2 halves: nothing before, one after.
        before, after = (0, 1) if convolution.stride == 2 else (side // 2, side // 2)
        self.add(
            "Conv",
            [self.last, kernel, bias],
            kernel_shape=[side, side],
            strides=[convolution.stride] * 2,
            pads=[before, before, after, after],
            group=convolution.num_channels if convolution.is_depthwise else 1,
        )
        if convolution.relu6:
            zero, six = self.constant(np.float32(0)), self.constant(np.float32(6))
            self.add("Clip", [self.last, zero, six])
