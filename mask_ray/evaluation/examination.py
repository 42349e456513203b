"""One pass over labelled images: a model's answers, what each image is like, and a few to show."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from ray.data import Dataset
from scipy import ndimage

from mask_ray import data
from mask_ray.evaluation.scores import BATCH_SIZE, Predictions
from mask_ray.predictor import Images, Predictor

NUM_MISTAKES = 24


@dataclass(frozen=True)
class Mistake:
    """A wrong answer.

    Args:
        image: As the model saw it, uint8 of shape (S, S, 3).
        label: Index of the true class.
        probabilities: Shape (classes,).
    """

    path: str
    image: Images
    label: int
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Examined:
    """What was seen.

    Args:
        predictions: Of all images.
        properties: Of each image, by name: `folder`, `longer_side` (px of the file), `brightness`
            (mean, 0..255) and `sharpness` (variance of the Laplacian; both of what the model sees).
        mistakes: The surest wrong answers, at most 24, the surest first.
        sampled: A few images, chosen by their place in the data, and their labels.
    """

    predictions: Predictions
    properties: Mapping[str, NDArray[Any]]
    mistakes: list[Mistake]
    sampled: tuple[Images, NDArray[np.int64]]


@dataclass
class _Seen:
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    probabilities: list[NDArray[np.float64]] = field(default_factory=list)
    properties: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    # A heap of (confidence, its number, mistake), the least sure first.
    mistakes: list[tuple[float, int, Mistake]] = field(default_factory=list)
    images: list[Images] = field(default_factory=list)


def examine(dataset: Dataset, predictor: Predictor, num_sampled: int) -> Examined:
    """Run a model over rows `image`, `label`, `path` and `longer_side`.

    Only answers and properties of all images are held, and the pixels of a few.

    Args:
        dataset: See `data.ImageData.examples`.
        predictor: The model.
        num_sampled: Images to keep.

    Raises:
        data.DataError: the dataset has no rows.
    """
    seen = _Seen()
    num_seen = num_kept = 0
    for batch in dataset.iter_batches(batch_size=BATCH_SIZE):
        # As float32 rows sum to 1 only to seven digits.
        scores = predictor.predict(batch["image"]).astype(np.float64)
        scores /= scores.sum(axis=1, keepdims=True)
        seen.labels.append(batch["label"])
        seen.probabilities.append(scores)
        seen.properties.append(_properties(batch))
        _keep_mistakes(seen.mistakes, batch, scores, num_seen)
        if num_kept < num_sampled:
            seen.images.append(batch["image"][: num_sampled - num_kept].copy())
            num_kept += len(seen.images[-1])
        num_seen += len(scores)
    if not seen.labels:
        raise data.DataError("there are no images to evaluate on")
    return _joined(seen, list(predictor.class_names), num_kept)


def _joined(seen: _Seen, class_names: list[str], num_kept: int) -> Examined:
    labels = np.concatenate(seen.labels)
    properties = {
        name: np.concatenate([part[name] for part in seen.properties])
        for name in seen.properties[0]
    }
    images = np.concatenate(seen.images) if seen.images else np.empty((0, 1, 1, 3), np.uint8)
    mistakes = [mistake for _, _, mistake in sorted(seen.mistakes, key=_by_confidence)]
    predictions = Predictions(labels, np.concatenate(seen.probabilities), class_names)
    return Examined(predictions, properties, mistakes, (images, labels[:num_kept]))


def _by_confidence(entry: tuple[float, int, Mistake]) -> tuple[float, int]:
    return -entry[0], entry[1]


def _keep_mistakes(
    mistakes: list[tuple[float, int, Mistake]],
    batch: data.Batch,
    scores: NDArray[np.float64],
    num_before: int,
) -> None:
    for row in np.flatnonzero(scores.argmax(axis=1) != batch["label"]):
        image = batch["image"][row].copy()
        mistake = Mistake(str(batch["path"][row]), image, int(batch["label"][row]), scores[row])
        entry = (float(scores[row].max()), num_before + int(row), mistake)
        if len(mistakes) < NUM_MISTAKES:
            heapq.heappush(mistakes, entry)
        else:
            heapq.heappushpop(mistakes, entry)


def _properties(batch: data.Batch) -> dict[str, NDArray[Any]]:
    grey = [np.asarray(Image.fromarray(image).convert("L"), np.float32) for image in batch["image"]]
    return {
        "folder": np.array([PurePosixPath(path).parent.name for path in batch["path"]], object),
        "longer_side": batch["longer_side"],
        "brightness": np.array([image.mean() for image in grey]),
        # Pech-Pacheco et al. 2000, https://doi.org/10.1109/ICPR.2000.903548
        "sharpness": np.array([ndimage.laplace(image).var() for image in grey]),
    }
