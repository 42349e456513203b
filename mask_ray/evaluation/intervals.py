"""How far figures could be off because the test images are the ones they are.

Percentile bootstrap: figures of as many images, drawn with replacement, over and over; 95% of them
lie in the interval. Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from mask_ray.evaluation import calibration
from mask_ray.evaluation.scores import Predictions

NUM_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """95% intervals of the figures that `metrics` gives, under the same names.

    ROC AUC is left out. A class that a draw has no image of says nothing about its recall there.
    """
    rng = np.random.default_rng(seed)
    labels, probabilities = predictions.labels, predictions.probabilities
    draws = [
        _figures(labels[drawn], probabilities[drawn])
        for drawn in (rng.integers(len(labels), size=len(labels)) for _ in range(NUM_RESAMPLES))
    ]
    overall = ("accuracy", "log_loss", "expected_calibration_error")
    found: dict[str, Any] = {name: _interval([draw[name] for draw in draws]) for name in overall}
    for name in ("precision", "recall", "f1"):
        by_class = np.stack([draw[name] for draw in draws])
        found[name] = {
            class_name: _interval(by_class[:, index])
            for index, class_name in enumerate(predictions.class_names)
        }
    return found


def of_share(num_right: int, num_images: int) -> Interval:
    """95% interval of a share, after Wilson 1927 (https://doi.org/10.2307/2276774).

    Not by drawing: of a few images without a mistake every draw is perfect.
    """
    found = binomtest(num_right, num_images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _figures(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, Any]:
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    right = confusion.diagonal()
    own = probabilities[np.arange(len(labels)), labels]
    with np.errstate(invalid="ignore"):
        precision, recall = right / confusion.sum(axis=0), right / confusion.sum(axis=1)
        f1 = 2 * right / (confusion.sum(axis=0) + confusion.sum(axis=1))
    return {
        "accuracy": right.sum() / len(labels),
        "log_loss": -np.log(np.maximum(own, np.finfo(float).tiny)).mean(),
        "expected_calibration_error": calibration.expected_error(
            calibration.bins(labels, probabilities)
        ),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def _interval(draws: Sequence[float] | NDArray[np.float64]) -> Interval:
    known = np.asarray(draws)[~np.isnan(draws)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.percentile(known, _PERCENTILES)
    return float(low), float(high)
