"""MobileNetV2 without Keras: its layers, their weights in .h5 files, and the graph as ONNX.

The architecture is a short table, so its ONNX graph is written from that directly, with batch
norm folded into the convolutions: in a fraction of a second, where a converter has to import
TensorFlow and trace the model first. The tests hold it to Keras's own.

Sandler et al. 2018, table 2, https://arxiv.org/abs/1801.04381; the order of the layers, their
rounded widths and their padding are those of `keras.applications.MobileNetV2`.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import h5py
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT_NAME = "image"
FEATURES_NAME = "features"
OUTPUT_NAME = "probabilities"

Array = NDArray[np.float32]

# Expansion, channels, repeats and first stride of each row of the paper's table.
_TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_NORM_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True)
class Convolution:
    """A convolution and the batch norm after it.

    Args:
        kernel_shape: As Keras has it: (height, width, channels in, channels out), or
            (height, width, channels, 1) where it is depthwise.
        stride: Of both sides.
        relu6: Whether ReLU6 follows the batch norm.
        adds_input: Whether the input of its block, which begins two convolutions before it, is
            added to its output.
    """

    kernel_shape: tuple[int, int, int, int]
    stride: int = 1
    relu6: bool = True
    adds_input: bool = False

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.kernel_shape[:2] == (3, 3) and self.kernel_shape[3] == 1

    @property
    def num_channels(self) -> int:
        """Channels of its output."""
        return self.kernel_shape[2] if self.is_depthwise else self.kernel_shape[3]


@dataclass(frozen=True)
class BatchNorm:
    """What a batch norm layer holds, in Keras's order; shape (channels,) each."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array


@dataclass(frozen=True)
class Layer:
    """A convolution with its weights, in Keras's shape."""

    convolution: Convolution
    kernel: Array
    norm: BatchNorm

    def folded(self) -> tuple[Array, Array]:
        """Kernel in ONNX's shape, (out, in / groups, height, width), and bias."""
        scale = self.norm.gamma / np.sqrt(self.norm.variance + _NORM_EPSILON)
        order = (2, 3, 0, 1) if self.convolution.is_depthwise else (3, 2, 0, 1)
        kernel = self.kernel.transpose(order) * scale[:, None, None, None]
        return kernel, self.norm.beta - self.norm.mean * scale


def convolutions(alpha: float) -> Iterator[Convolution]:
    """The convolutions in order, for width multiplier `alpha`."""
    channels = _rounded(32 * alpha)
    yield Convolution((3, 3, 3, channels), stride=2)
    for expansion, width, repeats, first_stride in _TABLE:
        projected = _rounded(int(width * alpha))
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            expanded = expansion * channels
            if expansion > 1:
                yield Convolution((1, 1, channels, expanded))
            yield Convolution((3, 3, expanded, 1), stride=stride)
            adds_input = stride == 1 and projected == channels
            yield Convolution((1, 1, expanded, projected), relu6=False, adds_input=adds_input)
            channels = projected
    yield Convolution((1, 1, channels, _rounded(1280 * max(alpha, 1.0))))


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, but not down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def read_h5(encoded: bytes, alpha: float) -> list[Array]:
    """The weights in an .h5 file of Keras, old format or new, in the order of the layers.

    Args:
        encoded: The file's content.
        alpha: Width multiplier that they should be of.

    Returns:
        Of each convolution its kernel, then gamma, beta, mean and variance of its batch norm.

    Raises:
        ValueError: not an HDF5 file, or the layers of another network or width.
    """
    try:
        with h5py.File(io.BytesIO(encoded)) as file:
            layers = _read_old(file) if "layer_names" in file.attrs else _read_new(file)
    except (OSError, KeyError) as error:
        raise ValueError(str(error)) from error
    _check(layers, alpha)
    return [weight for layer in layers for weight in layer]


def _read_old(file: h5py.File) -> list[list[Array]]:
    """Groups by layer, named in order by an attribute, as are the weights in each."""
    groups = [file[name] for name in file.attrs["layer_names"]]
    return [
        [group[name][()] for name in group.attrs["weight_names"]]
        for group in groups
        if len(group.attrs["weight_names"])
    ]


def _read_new(file: h5py.File) -> list[list[Array]]:
    """Groups by class of layer, numbered: `conv2d`, `conv2d_1` ..., each with `vars/0` ..."""
    found: dict[str, dict[int, list[Array]]] = defaultdict(dict)
    for name, group in file["layers"].items():
        kind, number = re.findall(r"^(.*?)(?:_(\d+))?$", name)[0]
        variables = group.get("vars", {})
        found[kind][int(number or 0)] = [variables[str(i)][()] for i in range(len(variables))]
    numbers: dict[str, Iterator[int]] = defaultdict(count)
    kinds = ["depthwise_conv2d" if c.is_depthwise else "conv2d" for c in convolutions(1.0)]
    layers = []
    for kind in (kind for conv in kinds for kind in (conv, "batch_normalization")):
        number = next(numbers[kind])
        if number not in found[kind]:
            raise ValueError(f"it has {number} layers of the kind {kind}, which are too few")
        layers.append(found[kind][number])
    return layers


def _check(layers: list[list[Array]], alpha: float) -> None:
    expected: list[list[tuple[int, ...]]] = []
    for convolution in convolutions(alpha):
        expected += [[convolution.kernel_shape], [(convolution.num_channels,)] * 4]
    if len(layers) != len(expected):
        raise ValueError(f"it has {len(layers)} layers with weights in place of {len(expected)}")
    for number, (layer, shapes) in enumerate(zip(layers, expected, strict=True), start=1):
        found = [weight.shape for weight in layer]
        if found != shapes:
            raise ValueError(f"layer {number} has weights of shapes {found} in place of {shapes}")


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
    for layer in _layers(weights, alpha):
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


def _layers(weights: list[Array], alpha: float) -> Iterator[Layer]:
    own = iter(weights)
    for convolution in convolutions(alpha):
        kernel, *norm = (next(own) for _ in range(5))
        yield Layer(convolution, kernel, BatchNorm(*norm))
    assert next(own, None) is None, "weights of no layer"


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
