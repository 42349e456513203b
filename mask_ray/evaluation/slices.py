"""Figures of parts of the test images: whether a model is worse on dark, small or blurred ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.evaluation.examination import Examined
from mask_ray.evaluation.intervals import Interval, of_share

NUM_PARTS = 4
_MAX_FOLDERS = 12


@dataclass(frozen=True)
class Slice:
    """The images of which one property has certain values.

    Args:
        interval: 95%, of the accuracy.
    """

    name: str
    num_images: int
    accuracy: float
    interval: Interval


def slices(examined: Examined) -> dict[str, list[Slice]]:
    """By property: quarters of the images by rising value; of folders, the twelve largest."""
    predictions = examined.predictions
    correct = predictions.predicted == predictions.labels
    return {
        name: _by_name(values, correct) if name == "folder" else _by_quarter(values, correct)
        for name, values in examined.properties.items()
    }


def _by_name(values: NDArray[Any], correct: NDArray[np.bool_]) -> list[Slice]:
    names, counts = np.unique(values.astype(str), return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")[:_MAX_FOLDERS]]
    return [_slice(str(name), correct[values == name]) for name in largest]


def _by_quarter(values: NDArray[Any], correct: NDArray[np.bool_]) -> list[Slice]:
    inner = np.quantile(values, np.arange(1, NUM_PARTS) / NUM_PARTS)
    # Equal values are in one part, so there may be fewer.
    parts = np.searchsorted(np.unique(inner), values, side="left")
    found = []
    for part in np.unique(parts):
        inside = parts == part
        low, high = values[inside].min(), values[inside].max()
        found.append(_slice(f"{low:.4g} to {high:.4g}", correct[inside]))
    return found


def _slice(name: str, correct: NDArray[np.bool_]) -> Slice:
    num_right, num_images = int(correct.sum()), len(correct)
    return Slice(name, num_images, num_right / num_images, of_share(num_right, num_images))
