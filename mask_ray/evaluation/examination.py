"""Run a model over labelled images once, and keep what a report needs.

Keeps a few numbers for each image, and the pixels of a few images.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data
from mask_ray.data import near_duplicates
from mask_ray.evaluation.metrics import Predictions, predict
from mask_ray.images.decode import read_header
from mask_ray.images.errors import ImageError
from mask_ray.models.predictor import Images, Predictor, Probabilities

NUM_MISTAKES = 24
NUM_DOUBTS = 12
# Of a batch: copies of one picture can be the least sure together.
_NUM_DOUBTFUL = 10 * NUM_DOUBTS

_NUM_THREADS = 8


@dataclass(frozen=True)
class Traits:
    """Traits of images; each field has an entry for each image.

    Args:
        folder: Folder of the file, with its class folder.
        longer_side_px: Longer side of the file's image; 0 if the file isn't on this machine.
        brightness: Mean luma, 0..255, of the pixels that the model sees.
        sharpness: Variance of the Laplacian of that luma; it falls with blur. Pech-Pacheco et
            al. 2000, https://doi.org/10.1109/ICPR.2000.903548.
    """

    folder: list[str]
    longer_side_px: NDArray[np.int64]
    brightness: NDArray[np.float64]
    sharpness: NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """An image and the model's prediction.

    Args:
        path: Path of the file.
        image: Pixels that the model saw, uint8 (S, S, 3).
        label: True class.
        predicted: Predicted class.
        probability: Probability of `predicted`.
    """

    path: str
    image: Images
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Examination:
    """Predictions and traits of all images, and some of the images.

    Args:
        predictions: Predictions for all images.
        traits: Traits of all images.
        mistakes: Wrong answers, the most confident first.
        doubts: Right answers, the least confident first, one of each picture.
        sample: The first images, which are in random order, uint8 (N, S, S, 3).
        sample_labels: True classes of the sample.
    """

    predictions: Predictions
    traits: Traits
    mistakes: list[Answer]
    doubts: list[Answer]
    sample: Images
    sample_labels: NDArray[np.int64]


def examine(dataset: Dataset, predictor: Predictor, num_sampled: int) -> Examination:
    """Run the model over rows `image` (uint8, (S, S, 3)), `label` and `path`.

    Raises:
        data.DataError: the dataset has no rows.
    """
    observer = _Observer(num_sampled)
    predictions = predict(dataset, predictor, observer.add)
    return Examination(
        predictions,
        observer.traits(),
        observer.mistakes,
        observer.doubts,
        np.concatenate(observer.sampled),
        predictions.labels[:num_sampled],
    )


def _answer(batch: data.Batch, probabilities: Probabilities, row: int) -> Answer:
    return Answer(
        path=batch["path"][row],
        image=batch["image"][row].copy(),
        label=int(batch["label"][row]),
        predicted=int(probabilities[row].argmax()),
        probability=float(probabilities[row].max()),
    )


class _Observer:
    def __init__(self, num_sampled: int) -> None:
        self._num_missing = num_sampled
        self._paths: list[str] = []
        self._brightness: list[NDArray[np.float64]] = []
        self._sharpness: list[NDArray[np.float64]] = []
        self.sampled: list[Images] = []
        self.mistakes: list[Answer] = []
        self.doubts: list[Answer] = []

    def add(self, batch: data.Batch, probabilities: Probabilities) -> None:
        luma = _luma(batch["image"])
        self._paths += batch["path"].tolist()
        self._brightness.append(luma.mean(axis=(1, 2)))
        self._sharpness.append(_laplacian(luma).var(axis=(1, 2)))
        self.sampled.append(batch["image"][: self._num_missing].copy())
        self._num_missing -= len(self.sampled[-1])
        self._keep(batch, probabilities)

    def _keep(self, batch: data.Batch, probabilities: Probabilities) -> None:
        """Keep the most confident mistakes and the least confident right answers so far."""
        confidence = probabilities.max(axis=1)
        is_wrong = probabilities.argmax(axis=1) != batch["label"]
        wrong, right = np.flatnonzero(is_wrong), np.flatnonzero(~is_wrong)
        for row in wrong[np.argsort(-confidence[wrong])[:NUM_MISTAKES]].tolist():
            self.mistakes.append(_answer(batch, probabilities, row))
        self.mistakes = sorted(self.mistakes, key=lambda answer: -answer.probability)[:NUM_MISTAKES]
        doubtful = right[np.argsort(confidence[right])[:_NUM_DOUBTFUL]]
        self._keep_doubts([_answer(batch, probabilities, row) for row in doubtful.tolist()])

    def _keep_doubts(self, answers: list[Answer]) -> None:
        if len(self.doubts) == NUM_DOUBTS:
            # The others are surer than all that are kept.
            answers = [a for a in answers if a.probability < self.doubts[-1].probability]
        if answers:
            doubts = sorted(self.doubts + answers, key=lambda answer: answer.probability)
            pictures = [near_duplicates.signature(d.image, *d.image.shape[:2]) for d in doubts]
            rows = near_duplicates.first_of_each(np.stack(pictures), NUM_DOUBTS)
            self.doubts = [doubts[row] for row in rows]

    def traits(self) -> Traits:
        return Traits(
            [Path(path).parent.as_posix() for path in self._paths],
            _longer_sides(self._paths),
            np.concatenate(self._brightness),
            np.concatenate(self._sharpness),
        )


def _luma(images: Images) -> NDArray[np.float32]:
    """Return shape (N, S, S), 0..255; weights of ITU-R BT.601."""
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
