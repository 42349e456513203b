"""Measure how well a model's probabilities match its accuracy, and fit a temperature.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from mask_ray.evaluation.metrics import Predictions

NUM_BINS = 15

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0


def expected_calibration_error(predictions: Predictions) -> float:
    """Return the mean distance between confidence and accuracy, over 15 bins of equal width.

    Confidence is the probability of the predicted class. Bins are weighted by their images.
    """
    gaps = confidence_gaps(predictions).sum(axis=0)
    return float(np.abs(gaps).sum() / len(predictions.labels))


def confidence_gaps(predictions: Predictions) -> NDArray[np.float64]:
    """Return confidence minus correctness (0 or 1), shape (N, 15), in the column of each's bin."""
    confidence, is_correct = _confidence(predictions)
    gaps = np.zeros((len(confidence), NUM_BINS))
    gaps[np.arange(len(confidence)), _bins(confidence)] = confidence - is_correct
    return gaps


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """Return bounds, number of images, mean confidence and accuracy of each bin with images."""
    confidence, is_correct = _confidence(predictions)
    bins = _bins(confidence)
    return [
        {
            "low": index / NUM_BINS,
            "high": (index + 1) / NUM_BINS,
            "num_images": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(is_correct[bins == index].mean()),
        }
        for index in np.unique(bins).tolist()
    ]


def _confidence(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    is_correct = predictions.predicted == predictions.labels
    return predictions.probabilities.max(axis=1), is_correct


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature, 0.1 to 10, that minimises the log loss on these images.

    Targets are smoothed as in Platt 1999, "Probabilistic Outputs for Support Vector Machines":
    with N images and K classes a label counts as (N + 1) / (N + K). Without that, a model that is
    right on all images would become certain of everything.

    Args:
        predictions: Predictions on images of neither the training split nor the test split.
    """
    logits = _logits(predictions)
    num_images, num_classes = logits.shape
    targets = np.full_like(logits, 1 / (num_images + num_classes))
    targets[np.arange(num_images), predictions.labels] *= num_images + 1

    def slope(inverse_temperature: float) -> float:
        return float(((softmax(logits * inverse_temperature, axis=1) - targets) * logits).sum())

    # The loss is convex in the inverse temperature, so its slope has at most one root.
    if slope(1 / MAX_TEMPERATURE) >= 0:
        return MAX_TEMPERATURE
    if slope(1 / MIN_TEMPERATURE) <= 0:
        return MIN_TEMPERATURE
    return 1 / float(brentq(slope, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE))


def scaled(predictions: Predictions, temperature: float) -> Predictions:
    """Return the predictions with logits divided by `temperature`."""
    probabilities = softmax(_logits(predictions) / temperature, axis=1)
    return Predictions(predictions.labels, probabilities, predictions.class_names)


def _logits(predictions: Predictions) -> NDArray[np.float64]:
    """Return the logits up to a constant in each row, on which a softmax does not depend."""
    logits: NDArray[np.float64] = np.log(
        np.clip(predictions.probabilities, np.finfo(np.float32).tiny, None)
    )
    return logits
