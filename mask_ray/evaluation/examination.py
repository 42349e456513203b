"""One pass of a model over labelled images, that keeps what a report tells and shows.

Of any number of images it keeps a few numbers each, and the pixels of a few.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data
from mask_ray.evaluation.scores import Predictions, predict
from mask_ray.images import ImageError, read_header
from mask_ray.predictor import Images, Predictor, Probabilities

NUM_MISTAKES = 24

_NUM_THREADS = 8


@dataclass(frozen=True)
class Traits:
    """What images are like, an entry each.

    Args:
        folder: Where the file is, its class folder included.
        longer_side_px: Of the file's picture; 0 where the file isn't on this machine.
        brightness: Mean luma, 0..255, of the pixels that the model sees.
        sharpness: Variance of the Laplacian of that luma; it falls with blur. Pech-Pacheco et
            al. 2000, https://doi.org/10.1109/ICPR.2000.903548.
    """

    folder: list[str]
    longer_side_px: NDArray[np.int64]
    brightness: NDArray[np.float64]
    sharpness: NDArray[np.float64]


@dataclass(frozen=True)
class Mistake:
    """An image that the model takes for another class.

    Args:
        path: Of the file.
        image: What the model saw, uint8 (S, S, 3).
        label: Its true class.
        predicted: What the model takes it for.
        probability: Of `predicted`.
    """

    path: str
    image: Images
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Examination:
    """What a model says of images, what those are like, and some of them.

    Args:
        predictions: Of all.
        traits: Of all.
        mistakes: The surest first.
        sample: The first few images, which come in random order, uint8 (N, S, S, 3).
        sample_labels: Their true classes.
    """

    predictions: Predictions
    traits: Traits
    mistakes: list[Mistake]
    sample: Images
    sample_labels: NDArray[np.int64]


def examine(dataset: Dataset, predictor: Predictor, num_sampled: int) -> Examination:
    """Run the model over rows `image` (uint8, (S, S, 3)), `label` and `path`.

    Raises:
        data.DataError: the dataset has no rows.
    """
    observer = _Observer(num_sampled)
    predictions = predict(dataset, predictor, observer.look)
    return Examination(
        predictions,
        observer.traits(),
        observer.mistakes,
        np.concatenate(observer.sampled),
        predictions.labels[:num_sampled],
    )


class _Observer:
    def __init__(self, num_sampled: int) -> None:
        self._num_wanted = num_sampled
        self._paths: list[str] = []
        self._brightness: list[NDArray[np.float64]] = []
        self._sharpness: list[NDArray[np.float64]] = []
        self.sampled: list[Images] = []
        self.mistakes: list[Mistake] = []

    def look(self, batch: data.Batch, probabilities: Probabilities) -> None:
        luma = _luma(batch["image"])
        self._paths += batch["path"].tolist()
        self._brightness.append(luma.mean(axis=(1, 2)))
        self._sharpness.append(_laplacian(luma).var(axis=(1, 2)))
        self.sampled.append(batch["image"][: self._num_wanted].copy())
        self._num_wanted -= len(self.sampled[-1])
        self._keep_mistakes(batch, probabilities)

    def _keep_mistakes(self, batch: data.Batch, probabilities: Probabilities) -> None:
        predicted = probabilities.argmax(axis=1)
        for row in np.flatnonzero(predicted != batch["label"]).tolist():
            probability = float(probabilities[row].max())
            label, found = int(batch["label"][row]), int(predicted[row])
            image = batch["image"][row].copy()
            mistake = Mistake(batch["path"][row], image, label, found, probability)
            self.mistakes.append(mistake)
        self.mistakes.sort(key=lambda mistake: -mistake.probability)
        del self.mistakes[NUM_MISTAKES:]

    def traits(self) -> Traits:
        return Traits(
            [Path(path).parent.as_posix() for path in self._paths],
            _longer_sides(self._paths),
            np.concatenate(self._brightness),
            np.concatenate(self._sharpness),
        )


def _luma(images: Images) -> NDArray[np.float32]:
    """Of shape (N, S, S), 0..255; weights of ITU-R BT.601."""
    return images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _laplacian(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = luma[:, 1:-1, 1:-1]
    across = luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return across + luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] - 4 * middle


def _longer_sides(paths: Sequence[str]) -> NDArray[np.int64]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return np.fromiter(pool.map(_longer_side, paths), np.int64, len(paths))


def _longer_side(path: str) -> int:
    try:
        header = read_header(Path(path).read_bytes())
    except (OSError, ImageError):
        return 0
    return max(header.width, header.height)
