"""Write ONNX files from weights: the backbone alone, or the backbone with a head.

The architecture is a short table, so its graph is written from that directly, with batch norm
folded into the convolutions: in a fraction of a second, where a converter has to import
TensorFlow and trace the model first. Tests compare the result with Keras's own.
"""

import json

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mask_ray.models import mobilenet
from mask_ray.models.file_format import (
    CLASS_NAMES_KEY,
    FEATURES_NAME,
    IMAGE_SIZE_KEY,
    INPUT_NAME,
    OUTPUT_NAME,
)
from mask_ray.models.mobilenet import PIXEL_CENTRE, Array, Layer

_OPSET = 17
_IR_VERSION = 8


def backbone_onnx(weights: list[Array], *, image_size: int, alpha: float) -> bytes:
    """Write the network up to its pooled features as an ONNX file.

    The file takes `image`, uint8 RGB of shape (N, image_size, image_size, 3), and gives
    `features`, float32 of shape (N, D). It rescales pixels itself.

    Args:
        weights: Weights in the order of `mobilenet.read_h5`, which is also that of Keras's
            `get_weights`.
        image_size: Side of the input in pixels, a multiple of 32.
        alpha: Width multiplier of the weights.
    """
    graph = _Graph()
    graph.add("Transpose", [INPUT_NAME], perm=[0, 3, 1, 2])
    graph.add("Cast", [graph.last], to=TensorProto.FLOAT)
    centre = graph.constant(np.float32(PIXEL_CENTRE))
    scale = graph.constant(np.float32(1 / PIXEL_CENTRE))
    outputs = [graph.add("Mul", [graph.add("Sub", [graph.last, centre]), scale])]
    for layer in mobilenet.to_layers(weights, alpha):
        graph.add_layer(layer)
        if layer.convolution.adds_input:
            graph.add("Add", [graph.last, outputs[-3]])
        outputs.append(graph.last)
    graph.add("GlobalAveragePool", [graph.last])
    graph.add("Flatten", [graph.last], output=FEATURES_NAME)
    image = helper.make_tensor_value_info(
        INPUT_NAME, TensorProto.UINT8, ["batch", image_size, image_size, 3]
    )
    features = helper.make_tensor_value_info(
        FEATURES_NAME, TensorProto.FLOAT, ["batch", len(weights[-1])]
    )
    return _encode(
        helper.make_graph(graph.nodes, mobilenet.GRAPH_NAME, [image], [features], graph.constants),
        {IMAGE_SIZE_KEY: str(image_size)},
    )


def classifier_onnx(backbone: bytes, kernel: Array, bias: Array, class_names: list[str]) -> bytes:
    """Add a head to a backbone: the file maps `image` to `probabilities`, (N, classes).

    Its metadata holds `class_names` (JSON) and `image_size`.

    Args:
        backbone: ONNX file of `backbone_onnx`.
        kernel: Weights of the dense layer, shape (D, classes).
        bias: Bias of the dense layer, shape (classes,).
        class_names: A name for each column of the kernel.
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
    (image_size,) = (entry.value for entry in model.metadata_props if entry.key == IMAGE_SIZE_KEY)
    return _encode(graph, {CLASS_NAMES_KEY: json.dumps(class_names), IMAGE_SIZE_KEY: image_size})


def _encode(graph: onnx.GraphProto, metadata: dict[str, str]) -> bytes:
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString()
    return encoded


class _Graph:
    """Nodes and constants of an ONNX graph, named by their order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    @property
    def last(self) -> str:
        """Name of the last node's output."""
        name: str = self.nodes[-1].output[0]
        return name

    def constant(self, value: NDArray[np.float32] | np.float32) -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op_type: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        """Add a node; return the name of its output."""
        output = output or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def add_layer(self, layer: Layer) -> None:
        """Add a convolution, with its batch norm folded in, and its activation."""
        convolution = layer.convolution
        kernel, bias = (self.constant(value) for value in layer.folded())
        side = convolution.kernel_shape[0]
        # Keras's "same" padding where a stride of 2 halves an even side: 0 before, 1 after.
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
