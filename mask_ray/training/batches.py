"""Batches for one worker: cached features for the head, augmented images for other phases.

In every epoch each worker gets the same number of training rows, in an order that depends only on
the seed and the epoch.
"""

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data
from mask_ray.config import MaskRayError
from mask_ray.images.augment import augment

# Rows that a worker holds to shuffle them; 1,024 images of 128 px take 50 MB.
_SHUFFLE_ROWS = 1024
_VAL_BATCH_SIZE = 256

# Inputs of the model, and labels: int64 (N,).
Batch = tuple[NDArray[Any], NDArray[np.int64]]


class Batches(Protocol):
    """Source of the rows of a training phase."""

    def train(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yield this worker's training rows of an epoch, counted from the start of the run."""

    def val(self) -> Iterator[Batch]:
        """Yield this worker's validation rows; workers may have different numbers, or none."""


class FeatureBatches:
    """Rows from the files that `mask_ray.training.features` writes, mapped into memory.

    Each epoch takes every image once, as one of its views, chosen at random.

    Args:
        folder: Folder of the files.
        rank: Rank of this worker.
        size: Number of workers.
        seed: Seed of the permutation that all workers share; the same on all of them.

    Raises:
        MaskRayError: this worker cannot read the folder.
    """

    def __init__(self, folder: Path, rank: int, size: int, seed: int) -> None:
        self._rank, self._size, self._seed = rank, size, seed
        try:
            self._train = np.load(folder / "train_features.npy", mmap_mode="r")
            self._val = np.load(folder / "val_features.npy", mmap_mode="r")
            self._train_labels = np.load(folder / "train_labels.npy")
            self._val_labels = np.load(folder / "val_labels.npy")
            self._train_order = np.load(folder / "train_order.npy")
            self._val_order = np.load(folder / "val_order.npy")
        except (OSError, EOFError, ValueError) as error:
            raise MaskRayError(
                f"the features in {folder} cannot be read by worker {rank}: {error}. "
                "MASK_RAY_HOME must be on storage that all nodes mount at the same place"
            ) from error

    def train(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yield float32 (N, D) and labels."""
        num_images, num_views, _ = self._train.shape
        rng = np.random.default_rng([self._seed, epoch])
        order = self._train_order[rng.permutation(num_images)]
        views = rng.integers(0, num_views, num_images)
        own = order[self._rank :: self._size][: num_images // self._size]
        for start in range(0, len(own), batch_size):
            rows = own[start : start + batch_size]
            yield self._train[rows, views[rows]].astype(np.float32), self._train_labels[rows]

    def val(self) -> Iterator[Batch]:
        """Yield float32 (N, D) and labels."""
        own = self._val_order[self._rank :: self._size]
        for start in range(0, len(own), _VAL_BATCH_SIZE):
            rows = own[start : start + _VAL_BATCH_SIZE]
            yield self._val[rows, 0].astype(np.float32), self._val_labels[rows]


class ImageBatches:
    """Rows that stream through Ray Data, augmented by its tasks.

    Args:
        train: This worker's shard of `augmented(...)`.
        val: This worker's shard of the validation images.
        shared: Actor that `augmented` also got.
        rank: Rank of this worker.
        seed: Seed of the order of rows.
    """

    def __init__(self, train: Any, val: Any, shared: Any, rank: int, seed: int) -> None:
        self._train, self._val = train, val
        self._shared, self._rank, self._seed = shared, rank, seed

    def train(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yield uint8 (N, S, S, 3) and labels; rows are shuffled within chunks.

        The first chunk is one batch, so that training starts with the first batch; each later
        chunk has twice as many batches, up to `_SHUFFLE_ROWS` rows. Ray's own
        `local_shuffle_buffer_size` took as long for an image of 96 px as a training step.
        """
        if self._rank == 0:
            # Before `iter_batches` below: Ray Data starts the tasks of an epoch once all workers
            # have asked for it, this one too.
            ray.get(self._shared.set_epoch.remote(epoch))
        rng = np.random.default_rng([self._seed, epoch, self._rank])
        most = -(-_SHUFFLE_ROWS // batch_size)
        batches = self._train.iter_batches(batch_size=batch_size, prefetch_batches=2)
        for chunk in _growing_chunks(batches, most):
            order = rng.permutation(len(chunk["label"]))
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield chunk["image"][rows], chunk["label"][rows]

    def val(self) -> Iterator[Batch]:
        """Yield uint8 (N, S, S, 3) and labels."""
        for batch in self._val.iter_batches(batch_size=64, prefetch_batches=2):
            yield batch["image"], batch["label"]


def _growing_chunks(batches: Iterable[data.Batch], most: int) -> Iterator[data.Batch]:
    """Join 1, 2, 4 ... batches into one chunk, up to `most` of them."""
    batches, size = iter(batches), 1
    while chunk := list(islice(batches, size)):
        yield {name: np.concatenate([batch[name] for batch in chunk]) for name in chunk[0]}
        size = min(2 * size, most)


def augmented(
    images: Dataset, strength: float, seed: int, shared: Any, task_cpus: float
) -> Dataset:
    """Return the same rows, with another random view of each image in every epoch.

    Args:
        images: Rows with columns `image` and `label`.
        strength: Strength of augmentation, see `mask_ray.images.augment`.
        seed: Seed that determines the view, together with the epoch and the image's pixels.
        shared: Actor from `start_shared_state`.
        task_cpus: CPUs that each task reserves.
    """
    return data.map_rows(images, _augment, task_cpus, strength=strength, seed=seed, shared=shared)


def _augment(batch: data.Batch, strength: float, seed: int, shared: Any) -> data.Batch:
    now = ray.get(shared.get_epoch.remote())
    views = [
        augment(image, np.random.default_rng([seed, now, zlib.crc32(image.tobytes())]), strength)
        for image in batch["image"]
    ]
    return batch | {"image": np.stack(views)}
