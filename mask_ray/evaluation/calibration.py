"""Whether a model is right as often as its probabilities say, and the temperature that helps.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.evaluation.metrics import Predictions

NUM_BINS = 15

_TEMPERATURES = (0.1, 10.0)
_NUM_HALVINGS = 50


def expected_calibration_error(predictions: Predictions) -> float:
    """Mean distance between confidence and accuracy, over 15 bins of equal width.

    Confidence is the probability of the predicted class; bins count by their images.
    """
    gaps = confidence_gaps(predictions).sum(axis=0)
    return float(np.abs(gaps).sum() / len(predictions.labels))


def confidence_gaps(predictions: Predictions) -> NDArray[np.float64]:
    """Confidence less rightness (0 or 1) of each image, in the column of its bin; else 0."""
    confidence, right = _confidence(predictions)
    gaps = np.zeros((len(confidence), NUM_BINS))
    gaps[np.arange(len(confidence)), _bins(confidence)] = confidence - right
    return gaps


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """By bin that has images: its bounds, their number, mean confidence and accuracy."""
    confidence, right = _confidence(predictions)
    bins = _bins(confidence)
    return [
        {
            "low": index / NUM_BINS,
            "high": (index + 1) / NUM_BINS,
            "num_images": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(right[bins == index].mean()),
        }
        for index in np.unique(bins).tolist()
    ]


def _confidence(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    right = predictions.predicted == predictions.labels
    return predictions.probabilities.max(axis=1), right


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def fit_temperature(predictions: Predictions) -> float:
    """What to divide logits by, so that the log loss on these images is least: 0.1 to 10.

    Targets are smoothed as by Platt 1999, "Probabilistic Outputs for Support Vector Machines":
    with N images and K classes a label counts as (N + 1) / (N + K). Otherwise a model that is
    right on all of them would be told to be certain.

    Args:
        predictions: On images that the model was not trained on, and is not tested on.
    """
    # Equal to the logits but for a constant in each row, which changes nothing.
    logits = np.log(np.clip(predictions.probabilities, np.finfo(np.float32).tiny, None))
    num_images, num_classes = logits.shape
    targets = np.full_like(logits, 1 / (num_images + num_classes))
    targets[np.arange(num_images), predictions.labels] *= num_images + 1
    wanted = (targets * logits).sum()
    # The loss is convex in the inverse temperature, so its slope has one root.
    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        slope = (_softmax(logits * middle) * logits).sum() - wanted
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


def scaled(predictions: Predictions, temperature: float) -> Predictions:
    """What the model says with its logits divided by `temperature`."""
    logits = np.log(np.clip(predictions.probabilities, np.finfo(np.float32).tiny, None))
    probabilities = _softmax(logits / temperature)
    return Predictions(predictions.labels, probabilities, predictions.class_names)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return normalised
