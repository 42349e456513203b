"""Compute accuracy on parts of the images, to find where a model is weak."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.evaluation.examination import Traits
from mask_ray.evaluation.intervals import share_interval
from mask_ray.evaluation.metrics import Predictions

_NUM_BINS = 4
_MAX_FOLDERS = 20


@dataclass(frozen=True)
class Slice:
    """Accuracy on images that have a trait in common.

    Args:
        name: The common trait.
        num_images: Number of images, at least 1.
        accuracy: Share of right answers.
        interval: `low` and `high` of the 95% interval of the accuracy.
    """

    name: str
    num_images: int
    accuracy: float
    interval: dict[str, float]


def by_trait(predictions: Predictions, traits: Traits) -> dict[str, list[Slice]]:
    """Return slices by folder, and by quartiles of size, brightness and sharpness.

    A trait that all images share is left out. Of more than 20 folders, the 20 largest are kept.
    """
    right = predictions.predicted == predictions.labels
    by_name = {
        "folder": _by_value(right, _without_shared_start(traits.folder)),
        "longer side, px": _by_quarter(right, traits.longer_side_px, traits.longer_side_px > 0),
        "brightness": _by_quarter(right, traits.brightness),
        "sharpness": _by_quarter(right, traits.sharpness),
    }
    return {trait: slices for trait, slices in by_name.items() if len(slices) > 1}


def as_json(slices: dict[str, list[Slice]]) -> dict[str, Any]:
    """Return the slices as JSON values."""
    return {trait: [asdict(each) for each in own] for trait, own in slices.items()}


def _without_shared_start(folders: list[str]) -> list[str]:
    """Remove the leading folders that all paths share."""
    parts = [Path(folder).parts for folder in set(folders)]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [Path(*Path(folder).parts[shared:]).as_posix() for folder in folders]


def _by_value(right: NDArray[np.bool_], values: list[str]) -> list[Slice]:
    column = np.array(values)
    largest = [value for value, _ in Counter(values).most_common(_MAX_FOLDERS)]
    return [_slice(value, right[column == value]) for value in sorted(largest)]


def _by_quarter(
    right: NDArray[np.bool_], values: NDArray[Any], known: NDArray[np.bool_] | None = None
) -> list[Slice]:
    if known is not None:
        right, values = right[known], values[known]
    if not len(values):
        return []
    # Many files may have the same size, which gives fewer slices.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _NUM_BINS + 1)))
    bins = np.searchsorted(edges[1:-1], values, side="right")
    parts = [(values[bins == index], right[bins == index]) for index in np.unique(bins)]
    return [_slice(f"{own.min():.0f} to {own.max():.0f}", good) for own, good in parts]


def _slice(name: str, right: NDArray[np.bool_]) -> Slice:
    num_right, num = int(right.sum()), len(right)
    return Slice(name, num, num_right / num, share_interval(num_right, num))
