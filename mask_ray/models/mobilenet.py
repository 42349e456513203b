"""MobileNetV2 without Keras: its layers, and their weights in .h5 files.

Sandler et al. 2018, table 2, https://arxiv.org/abs/1801.04381; the order of the layers, their
rounded widths and their padding are those of `keras.applications.MobileNetV2`.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import h5py
import numpy as np
from numpy.typing import NDArray

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


def to_layers(weights: list[Array], alpha: float) -> Iterator[Layer]:
    """Join weights, in the order of `read_h5`, with the convolutions that they belong to."""
    own = iter(weights)
    for convolution in convolutions(alpha):
        kernel, *norm = (next(own) for _ in range(5))
        yield Layer(convolution, kernel, BatchNorm(*norm))
    assert next(own, None) is None, "weights of no layer"
