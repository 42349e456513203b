"""Compute precision, recall and false positives of each class by threshold of its probability."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from mask_ray.evaluation.metrics import Predictions

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_MAX_POINTS = 200


def thresholds(predictions: Predictions) -> dict[str, list[dict[str, float | None]]]:
    """Return precision and recall of each class if it is predicted from each threshold on.

    Precision is None if nothing is predicted, recall if the class has no images.
    """
    return {
        name: [_counts_at(threshold, *_scores_of(predictions, index)) for threshold in THRESHOLDS]
        for index, name in enumerate(predictions.class_names)
    }


def _scores_of(
    predictions: Predictions, index: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return predictions.labels == index, predictions.probabilities[:, index]


def _counts_at(
    threshold: float, positive: NDArray[np.bool_], scores: NDArray[np.float64]
) -> dict[str, float | None]:
    found = scores >= threshold
    num_right, num_found, num = (int(m.sum()) for m in (positive & found, found, positive))
    return {
        "threshold": threshold,
        "precision": num_right / num_found if num_found else None,
        "recall": num_right / num if num else None,
        "num_found": num_found,
    }


def curves(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Return points and areas of the ROC and precision-recall curve of each class.

    Classes without images, or with all of them, are left out.
    """
    by_class = {}
    for index, name in enumerate(predictions.class_names):
        positive, scores = _scores_of(predictions, index)
        if positive.all() or not positive.any():
            continue
        false_rate, true_rate, _ = roc_curve(positive, scores)
        precision, recall, _ = precision_recall_curve(positive, scores)
        by_class[name] = {
            "roc": _points(false_rate, true_rate),
            "roc_auc": float(roc_auc_score(positive, scores)),
            "precision_recall": _points(recall, precision),
            "average_precision": float(average_precision_score(positive, scores)),
        }
    return by_class


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[list[float]]:
    """Return at most 200 points, with the first and the last."""
    kept = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).astype(int))
    return [[round(float(a), 5), round(float(b), 5)] for a, b in zip(x[kept], y[kept], strict=True)]
