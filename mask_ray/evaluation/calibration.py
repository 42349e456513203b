"""Whether a probability of 0.9 is right nine times in ten, and what makes it so.

Temperature scaling divides the logits by one number, fitted on validation images, so no label
changes: Guo et al. 2017, https://arxiv.org/abs/1706.04599.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.optimize import minimize_scalar

NUM_BINS = 15

_METADATA_KEY = "temperature"
_OUTPUT_NAME = "probabilities"
_LOGARITHMS = (np.log(0.1), np.log(10.0))
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Bin:
    """The images whose likeliest class has a probability in one fifteenth of 0..1.

    Args:
        confidence: Their mean probability of that class.
        accuracy: Share of them of which it is the label.
    """

    num_images: int
    confidence: float
    accuracy: float


def bins(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[Bin]:
    """The bins that have images, by rising confidence.

    Args:
        labels: Shape (N,).
        probabilities: Shape (N, classes).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean()))
        for inside in (places == place for place in np.unique(places))
    ]


def expected_error(of: list[Bin]) -> float:
    """Mean distance of confidence and accuracy, over images."""
    num_images = sum(each.num_images for each in of)
    return sum(each.num_images * abs(each.confidence - each.accuracy) for each in of) / num_images


def fit_temperature(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """The temperature, in 0.1..10, of the least log loss on validation images.

    A label counts as certain only to 1 - 1 / (N + 2), or images without a mistake would make the
    model surer and surer: Platt 1999, "Probabilistic outputs for support vector machines".

    Args:
        labels: Shape (N,), N >= 1.
        probabilities: Shape (N, classes), at temperature 1.
    """
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    num_images, num_classes = logits.shape
    doubt = 1 / (num_images + 2)
    targets = np.full(logits.shape, doubt / (num_classes - 1))
    targets[np.arange(num_images), labels] = 1 - doubt

    def loss(logarithm: float) -> float:
        scaled = logits / np.exp(logarithm)
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return float(-(targets * scaled).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOGARITHMS, method="bounded").x))


def write_calibrated(source: Path, target: Path, temperature: float) -> None:
    """Write a model whose logits are divided by a temperature, which its metadata tells.

    Args:
        source: The ONNX file of a classifier, whose last node is a softmax.
        target: The file to write.
        temperature: Above 0.
    """
    model = onnx.load(source)
    graph = model.graph
    (softmax,) = (node for node in graph.node if _OUTPUT_NAME in node.output)
    assert softmax.op_type == "Softmax", "classifiers end with it"
    inverse = np.array(1 / temperature, np.float32)
    graph.initializer.append(numpy_helper.from_array(inverse, "inverse_temperature"))
    scale = helper.make_node("Mul", [softmax.input[0], "inverse_temperature"], ["calibrated"])
    softmax.input[0] = "calibrated"
    graph.node.insert(list(graph.node).index(softmax), scale)
    model.metadata_props.add(key=_METADATA_KEY, value=f"{temperature:.6g}")
    onnx.save(model, target)
