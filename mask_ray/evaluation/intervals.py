"""95% intervals of metrics: how much they may owe to chance, given this number of images.

Percentile bootstrap: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
If a share is 1, so is every resample, whatever the number of images. Such shares get the exact
interval instead: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from mask_ray.evaluation.calibration import confidence_gaps
from mask_ray.evaluation.metrics import Predictions

NUM_RESAMPLES = 1000
_CONFIDENCE = 0.95
_PERCENTILES = (2.5, 97.5)

# Largest array of resamples, in numbers: more resamples are drawn in parts.
_MAX_NUMBERS = 10_000_000

Floats = NDArray[np.float64]
Interval = dict[str, float]


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """Return `low` and `high` of the calibration error and of each metric of `compute_metrics`.

    Nested like the metrics. Undefined intervals are left out: those of a class without images, and
    those of F1 and ROC AUC where there is no mistake.
    """
    parts = [
        _resampled_metrics(predictions, counts)
        for counts in _resamples(len(predictions.labels), seed)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found: dict[str, Any] = {}
    for (metric, class_name), values in joined.items():
        defined = values[~np.isnan(values)]
        of_metric = found.setdefault(metric, {}) if class_name else found
        if defined.size:
            of_metric[class_name or metric] = _percentiles(defined)
    return _exact_where_perfect(found, predictions)


def share_interval(num_right: int, num: int, seed: int = 0) -> Interval:
    """Return the interval of the share `num_right / num`, `num` >= 1.

    A bootstrap of a share draws binomial numbers. Shares of 0 and 1 get the exact interval.
    """
    if num_right in (0, num):
        return _exact_interval(num_right, num)
    drawn = np.random.default_rng(seed).binomial(num, num_right / num, NUM_RESAMPLES) / num
    return _percentiles(drawn)


def _exact_interval(num_right: int, num: int) -> Interval:
    interval = binomtest(num_right, num).proportion_ci(_CONFIDENCE, method="exact")
    return {"low": float(interval.low), "high": float(interval.high)}


def _percentiles(values: Floats) -> Interval:
    low, high = np.percentile(values, _PERCENTILES)
    return {"low": float(low), "high": float(high)}


def _resamples(num_images: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn, shape (resamples, num_images), in parts."""
    rng = np.random.default_rng(seed)
    part_size = min(NUM_RESAMPLES, max(1, _MAX_NUMBERS // num_images))
    for start in range(0, NUM_RESAMPLES, part_size):
        num = min(part_size, NUM_RESAMPLES - start)
        drawn = rng.integers(0, num_images, (num, num_images))
        drawn += num_images * np.arange(num)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def _resampled_metrics(
    predictions: Predictions, counts: NDArray[np.int64]
) -> dict[tuple[str, str], Floats]:
    """Return each metric in each resample, by metric and class; NaN where it is undefined."""
    labels, predicted = predictions.labels, predictions.predicted
    weights = counts.astype(np.float64)
    label_probabilities = predictions.probabilities[np.arange(len(labels)), labels]
    tiny = np.finfo(np.float64).eps
    figures = {
        ("accuracy", ""): weights @ (predicted == labels) / len(labels),
        ("log_loss", ""): weights @ -np.log(np.clip(label_probabilities, tiny, None)) / len(labels),
        ("expected_calibration_error", ""): _calibration_errors(predictions, weights),
    }
    areas = []
    for index, name in enumerate(predictions.class_names):
        is_label, is_predicted = labels == index, predicted == index
        masks = (is_label & is_predicted, is_label, is_predicted)
        num_right, num, num_predicted = (weights @ mask for mask in masks)
        with np.errstate(invalid="ignore"):
            figures["precision", name] = num_right / num_predicted
            figures["recall", name] = num_right / num
            figures["f1", name] = 2 * num_right / (num + num_predicted)
        areas.append(_roc_areas(is_label, predictions.probabilities[:, index], weights))
    figures["roc_auc", ""] = np.mean(areas, axis=0)
    return figures


def _calibration_errors(predictions: Predictions, weights: Floats) -> Floats:
    gaps = confidence_gaps(predictions)
    return np.abs(weights @ gaps).sum(axis=1) / len(predictions.labels)


def _roc_areas(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return the area under the ROC curve in each resample.

    It is the share of pairs in which a positive's score is above a negative's; ties count half.
    """
    order = np.argsort(scores)
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ups = np.add.reduceat(np.where(positive[order], weights[:, order], 0), starts, axis=1)
    downs = np.add.reduceat(np.where(positive[order], 0, weights[:, order]), starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))


def _exact_where_perfect(found: dict[str, Any], predictions: Predictions) -> dict[str, Any]:
    """Give shares of 1 their exact interval; remove those of F1 and ROC AUC, which have none."""
    labels, predicted = predictions.labels, predictions.predicted
    if (labels == predicted).all():
        found["accuracy"] = _exact_interval(len(labels), len(labels))
    if found.get("roc_auc", {}).get("low") == 1:
        del found["roc_auc"]
    for index, name in enumerate(predictions.class_names):
        if found["f1"].get(name, {}).get("low") == 1:
            del found["f1"][name]
        for metric, of in (("recall", labels), ("precision", predicted)):
            num = int((of == index).sum())
            if num and ((labels == predicted) | (of != index)).all():
                found[metric][name] = _exact_interval(num, num)
    return found
