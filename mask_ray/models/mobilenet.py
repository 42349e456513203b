"""Everything particular to MobileNetV2: its layers, its weights, how it takes pixels.

Importing it needs neither Keras nor TensorFlow. The values that settings allow are in
`mask_ray.config.backbone`. docs/development/another-backbone.md lists what a different backbone
has to provide.

Sandler et al. 2018, table 2, https://arxiv.org/abs/1801.04381; the order of the layers, their
rounded widths and their padding are those of `keras.applications.MobileNetV2`.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from mask_ray.config.backbone import BACKBONE

if TYPE_CHECKING:
    import keras

Array = NDArray[np.float32]

NAME = BACKBONE
GRAPH_NAME = "mobilenet_v2"

# Pixels of 0..255 enter the first layer as -1..1: (pixel - 127.5) / 127.5.
PIXEL_CENTRE = 127.5

# The files that Keras itself downloads. The 224 px checkpoint serves every image size: the weights
# of convolutions do not depend on it, and there is one file to download or mirror.
WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
_WEIGHTS_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"

# SHA-256 of those files, by name, as far as they are known here.
WEIGHTS_SHA256 = {
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5": (
        "e2517ab4fb275c74f209158ac3eec5a8c95907c4e9cc29776a0e7276eb5e34b1"
    ),
}

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


def weights_file(alpha: float) -> str:
    """Name of the file with ImageNet's weights for width multiplier `alpha`."""
    return _WEIGHTS_FILE.format(alpha=float(alpha))


def build_keras(image_size: int, alpha: float) -> "keras.Model":
    """Build the network up to its last feature map, in Keras, with random weights.

    It takes float32 images of shape (N, image_size, image_size, 3), in -1..1.
    """
    import keras  # seconds, which readers of weights do not need

    return keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3),
        alpha=alpha,
        include_top=False,
        weights=None,
        name="backbone",
    )


def first_layer_of(block: str, layer_names: list[str]) -> int:
    """Return the index of a block's first layer.

    Args:
        block: One of `config.BLOCKS`.
        layer_names: Names of the layers of `build_keras`, in order.
    """
    # Keras calls the first block of the paper's table, which expands nothing, "expanded_conv".
    prefix = {"stem": "Conv1", "top": "Conv_1"}.get(block, f"{block}_")
    return next(index for index, name in enumerate(layer_names) if name.startswith(prefix))


@dataclass(frozen=True)
class Convolution:
    """A convolution and the batch norm after it.

    Args:
        kernel_shape: Shape in Keras: (height, width, channels in, channels out), or
            (height, width, channels, 1) if depthwise.
        stride: Stride along both sides.
        relu6: Whether ReLU6 follows the batch norm.
        adds_input: Whether its block is residual: the input of the block, which begins two
            convolutions earlier, is added to the output.
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
        """Number of output channels."""
        return self.kernel_shape[2] if self.is_depthwise else self.kernel_shape[3]


@dataclass(frozen=True)
class BatchNorm:
    """Parameters of a batch norm layer, in Keras's order; each of shape (channels,)."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array


@dataclass(frozen=True)
class Layer:
    """A convolution with its weights, in Keras's shapes."""

    convolution: Convolution
    kernel: Array
    norm: BatchNorm

    def folded(self) -> tuple[Array, Array]:
        """Fold the batch norm into the convolution.

        Returns:
            The kernel in ONNX's shape, (out, in / groups, height, width), and the bias.
        """
        scale = self.norm.gamma / np.sqrt(self.norm.variance + _NORM_EPSILON)
        order = (2, 3, 0, 1) if self.convolution.is_depthwise else (3, 2, 0, 1)
        kernel = self.kernel.transpose(order) * scale[:, None, None, None]
        return kernel, self.norm.beta - self.norm.mean * scale


def convolutions(alpha: float) -> Iterator[Convolution]:
    """Yield the network's convolutions in order, for width multiplier `alpha`."""
    channels = _round_channels(32 * alpha)
    yield Convolution((3, 3, 3, channels), stride=2)
    for expansion, width, repeats, first_stride in _TABLE:
        projected = _round_channels(int(width * alpha))
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            expanded = expansion * channels
            if expansion > 1:
                yield Convolution((1, 1, channels, expanded))
            yield Convolution((3, 3, expanded, 1), stride=stride)
            adds_input = stride == 1 and projected == channels
            yield Convolution((1, 1, expanded, projected), relu6=False, adds_input=adds_input)
            channels = projected
    yield Convolution((1, 1, channels, _round_channels(1280 * max(alpha, 1.0))))


def _round_channels(channels: float) -> int:
    """Round to the nearest multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def to_layers(weights: list[Array], alpha: float) -> Iterator[Layer]:
    """Join weights, in the order of `read_h5`, with the convolutions that they belong to."""
    remaining = iter(weights)
    for convolution in convolutions(alpha):
        kernel, *norm = (next(remaining) for _ in range(5))
        yield Layer(convolution, kernel, BatchNorm(*norm))
    assert next(remaining, None) is None, "more weights than layers"


def read_h5(encoded: bytes, alpha: float) -> list[Array]:
    """Read the weights from an .h5 file of Keras, in its old format or its new one.

    Args:
        encoded: Content of the file.
        alpha: Width multiplier that the weights must have.

    Returns:
        For each convolution in order: its kernel, then gamma, beta, mean and variance of its batch
        norm.

    Raises:
        ValueError: not an HDF5 file, or the layers of another network or width.
    """
    try:
        with h5py.File(io.BytesIO(encoded)) as file:
            layers = _read_old(file) if "layer_names" in file.attrs else _read_new(file)
    except (OSError, KeyError) as error:
        raise ValueError(str(error)) from error
    _check_shapes(layers, alpha)
    return [weight for layer in layers for weight in layer]


def _read_old(file: h5py.File) -> list[list[Array]]:
    """Read a file with a group for each layer; attributes hold the order of layers and weights."""
    groups = [file[name] for name in file.attrs["layer_names"]]
    return [
        [group[name][()] for name in group.attrs["weight_names"]]
        for group in groups
        if len(group.attrs["weight_names"])
    ]


def _read_new(file: h5py.File) -> list[list[Array]]:
    """Read a file with groups numbered by class: `conv2d`, `conv2d_1` ...; `vars/0` ... in each."""
    by_class: dict[str, dict[int, list[Array]]] = defaultdict(dict)
    for name, group in file["layers"].items():
        layer_class, number = re.findall(r"^(.*?)(?:_(\d+))?$", name)[0]
        variables = group.get("vars", {})
        weights = [variables[str(index)][()] for index in range(len(variables))]
        by_class[layer_class][int(number or 0)] = weights
    numbers: dict[str, Iterator[int]] = defaultdict(count)
    layers = []
    for convolution in convolutions(1.0):
        for layer_class in (
            "depthwise_conv2d" if convolution.is_depthwise else "conv2d",
            "batch_normalization",
        ):
            number = next(numbers[layer_class])
            if number not in by_class[layer_class]:
                raise ValueError(f"it has only {number} layers of class {layer_class}")
            layers.append(by_class[layer_class][number])
    return layers


def _check_shapes(layers: list[list[Array]], alpha: float) -> None:
    expected: list[list[tuple[int, ...]]] = []
    for convolution in convolutions(alpha):
        expected += [[convolution.kernel_shape], [(convolution.num_channels,)] * 4]
    if len(layers) != len(expected):
        raise ValueError(f"it must have {len(expected)} layers with weights; got {len(layers)}")
    for number, (layer, shapes) in enumerate(zip(layers, expected, strict=True), start=1):
        actual = [weight.shape for weight in layer]
        if actual != shapes:
            raise ValueError(f"layer {number} must have weights of shapes {shapes}; got {actual}")
