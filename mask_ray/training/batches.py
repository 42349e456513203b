"""Batches for one worker: of cached features for the head, of augmented images for the rest.

Each source gives, for every epoch, the same number of training rows to every worker, in an order
that the seed and the epoch decide.
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray import data
from mask_ray.config import MaskRayError
from mask_ray.images.augment import augment

# Rows held for shuffling by a worker; 1,024 images of 128 px take 50 MB.
_SHUFFLE_ROWS = 1024
_VAL_BATCH_SIZE = 256

# What a model takes, and labels, int64 (N,).
Batch = tuple[NDArray[Any], NDArray[np.int64]]


class Batches(Protocol):
    """Where a phase of the training takes its rows from."""

    def train(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """This worker's training rows of an epoch, which counts from the start of the run."""

    def val(self) -> Iterator[Batch]:
        """This worker's validation rows. Workers may have different numbers of them, or none."""


class FeatureBatches:
    """Rows of the files that `mask_ray.training.features` writes, mapped into memory.

    Each epoch takes every image once, as one of its views, drawn at random.

    Args:
        folder: Where the files are.
        rank: This worker's.
        size: Number of workers.
        seed: The same on all workers: they share out one permutation.

    Raises:
        MaskRayError: the folder cannot be read from here.
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
        """Float32 (N, D) and labels."""
        num_images, num_views, _ = self._train.shape
        rng = np.random.default_rng([self._seed, epoch])
        order = self._train_order[rng.permutation(num_images)]
        views = rng.integers(0, num_views, num_images)
        own = order[self._rank :: self._size][: num_images // self._size]
        for start in range(0, len(own), batch_size):
            rows = own[start : start + batch_size]
            yield self._train[rows, views[rows]].astype(np.float32), self._train_labels[rows]

    def val(self) -> Iterator[Batch]:
        """Float32 (N, D) and labels."""
        own = self._val_order[self._rank :: self._size]
        for start in range(0, len(own), _VAL_BATCH_SIZE):
            rows = own[start : start + _VAL_BATCH_SIZE]
            yield self._val[rows, 0].astype(np.float32), self._val_labels[rows]


class ImageBatches:
    """Rows that stream through Ray Data, augmented by its tasks.

    Args:
        train: This worker's shard of `augmented(...)`.
        val: This worker's shard of the validation images.
        epoch: The same actor that was given to `augmented`.
        rank: This worker's.
        seed: Of the order of rows.
    """

    def __init__(self, train: Any, val: Any, epoch: Any, rank: int, seed: int) -> None:
        self._train, self._val = train, val
        self._epoch, self._rank, self._seed = epoch, rank, seed

    def train(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Uint8 (N, S, S, 3) and labels; rows are shuffled within chunks.

        The first chunk is one batch, so that training starts as soon as that is there; each of
        the next is twice as long, up to `_SHUFFLE_ROWS`. Ray's own `local_shuffle_buffer_size`
        took as long for an image of 96 px as a training step.
        """
        if self._rank == 0:
            # The tasks of an epoch start when the last worker asks for it, so after this.
            ray.get(self._epoch.set.remote(epoch))
        rng = np.random.default_rng([self._seed, epoch, self._rank])
        most = -(-_SHUFFLE_ROWS // batch_size)
        batches = self._train.iter_batches(batch_size=batch_size, prefetch_batches=2)
        for chunk in _growing_chunks(batches, most):
            order = rng.permutation(len(chunk["label"]))
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield chunk["image"][rows], chunk["label"][rows]

    def val(self) -> Iterator[Batch]:
        """Uint8 (N, S, S, 3) and labels."""
        for batch in self._val.iter_batches(batch_size=64, prefetch_batches=2):
            yield batch["image"], batch["label"]


def _growing_chunks(batches: Iterable[data.Batch], most: int) -> Iterator[data.Batch]:
    """The rows of 1, 2, 4 ... batches, up to `most`, in one."""
    batches, size = iter(batches), 1
    while chunk := list(islice(batches, size)):
        yield {name: np.concatenate([batch[name] for batch in chunk]) for name in chunk[0]}
        size = min(2 * size, most)


class Epoch:
    """Tells Ray Data's tasks, which don't know it, what epoch they work for."""

    def __init__(self) -> None:
        self._epoch = 0

    def set(self, epoch: int) -> None:
        """Of the images that are asked for from now on."""
        self._epoch = epoch

    def get(self) -> int:
        """Of the images that are now being made."""
        return self._epoch


def start_epoch_actor() -> Any:
    """An Epoch that lives as long as this process, and on its node: others may be lost."""
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Epoch)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))
        .remote()
    )


def augmented(images: Dataset, strength: float, seed: int, epoch: Any, task_cpus: float) -> Dataset:
    """The same rows, with another random view of each image in every epoch.

    Args:
        images: Rows `image` and `label`.
        strength: See `mask_ray.images.augment`.
        seed: With the epoch and the image's pixels, it decides the view.
        epoch: From `start_epoch_actor`.
        task_cpus: What each task reserves.
    """
    return data.map_rows(images, _augment, task_cpus, strength=strength, seed=seed, epoch=epoch)


def _augment(batch: data.Batch, strength: float, seed: int, epoch: Any) -> data.Batch:
    now = ray.get(epoch.get.remote())
    views = [
        augment(image, np.random.default_rng([seed, now, zlib.crc32(image.tobytes())]), strength)
        for image in batch["image"]
    ]
    return batch | {"image": np.stack(views)}
