"""How far figures may be from what they would be on ever more such images: 95% intervals.

Percentile bootstrap: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
Its resamples of a share that is 1 are all 1, whatever the number of images; there the exact
interval takes its place: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.evaluation.calibration import confidence_gaps
from mask_ray.evaluation.metrics import Predictions

NUM_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)

# Resamples are drawn and weighed as one array of at most this many numbers.
_MAX_NUMBERS = 10_000_000

Floats = NDArray[np.float64]
Interval = dict[str, float]


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """`low` and `high` of each figure of `scores.metrics`, nested as there, and of the ECE.

    Left out where undefined: some class has no images, or F1 and ROC AUC without any mistake.
    """
    parts = [_figures(predictions, counts) for counts in _resamples(len(predictions.labels), seed)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found: dict[str, Any] = {}
    for (metric, class_name), values in joined.items():
        defined = values[~np.isnan(values)]
        of_metric = found.setdefault(metric, {}) if class_name else found
        if defined.size:
            of_metric[class_name or metric] = _percentiles(defined)
    return _exact_where_perfect(found, predictions)


def share_interval(num_right: int, num: int, seed: int = 0) -> Interval:
    """Of a share of `num` >= 1 images: the resampled numbers of right ones are binomial."""
    if num_right == num:
        return _of_perfect(num)
    if num_right == 0:
        return {"low": 0.0, "high": 1 - _of_perfect(num)["low"]}
    drawn = np.random.default_rng(seed).binomial(num, num_right / num, NUM_RESAMPLES) / num
    return _percentiles(drawn)


def _of_perfect(num: int) -> Interval:
    return {"low": (_PERCENTILES[0] / 100) ** (1 / num), "high": 1.0}


def _percentiles(values: Floats) -> Interval:
    low, high = np.percentile(values, _PERCENTILES)
    return {"low": float(low), "high": float(high)}


def _resamples(num_images: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each image is drawn, shape (resamples, num_images), in parts."""
    rng = np.random.default_rng(seed)
    num_together = min(NUM_RESAMPLES, max(1, _MAX_NUMBERS // num_images))
    for start in range(0, NUM_RESAMPLES, num_together):
        num = min(num_together, NUM_RESAMPLES - start)
        drawn = rng.integers(0, num_images, (num, num_images))
        drawn += num_images * np.arange(num)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def _figures(predictions: Predictions, counts: NDArray[np.int64]) -> dict[tuple[str, str], Floats]:
    """Each figure, by metric and class, in each resample. NaN where it is undefined."""
    labels, found = predictions.labels, predictions.predicted
    weights = counts.astype(np.float64)
    own = predictions.probabilities[np.arange(len(labels)), labels]
    tiny = np.finfo(np.float64).eps
    figures = {
        ("accuracy", ""): weights @ (found == labels) / len(labels),
        ("log_loss", ""): weights @ -np.log(np.clip(own, tiny, None)) / len(labels),
        ("expected_calibration_error", ""): _calibration_errors(predictions, weights),
    }
    areas = []
    for index, name in enumerate(predictions.class_names):
        is_own, is_found = labels == index, found == index
        right, num, num_found = (weights @ m for m in (is_own & is_found, is_own, is_found))
        with np.errstate(invalid="ignore"):
            figures["precision", name] = right / num_found
            figures["recall", name] = right / num
            figures["f1", name] = 2 * right / (num + num_found)
        areas.append(_areas(is_own, predictions.probabilities[:, index], weights))
    figures["roc_auc", ""] = np.mean(areas, axis=0)
    return figures


def _calibration_errors(predictions: Predictions, weights: Floats) -> Floats:
    gaps = confidence_gaps(predictions)
    return np.abs(weights @ gaps).sum(axis=1) / len(predictions.labels)


def _areas(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve: how often a positive's score beats a negative's, ties by half."""
    order = np.argsort(scores)
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ups = np.add.reduceat(np.where(positive[order], weights[:, order], 0), starts, axis=1)
    downs = np.add.reduceat(np.where(positive[order], 0, weights[:, order]), starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))


def _exact_where_perfect(found: dict[str, Any], predictions: Predictions) -> dict[str, Any]:
    """Shares that are 1 get their exact interval; for F1 and ROC AUC there is none to give."""
    labels, predicted = predictions.labels, predictions.predicted
    if (labels == predicted).all():
        found["accuracy"] = _of_perfect(len(labels))
    if found.get("roc_auc", {}).get("low") == 1:
        del found["roc_auc"]
    for index, name in enumerate(predictions.class_names):
        if found["f1"].get(name, {}).get("low") == 1:
            del found["f1"][name]
        for metric, of in (("recall", labels), ("precision", predicted)):
            num = int((of == index).sum())
            if num and ((labels == predicted) | (of != index)).all():
                found[metric][name] = _of_perfect(num)
    return found
