"""Outputs of the frozen backbone (features), computed once and cached for all epochs and runs.

Ray Data runs the backbone, as ONNX, over the training images, augmented views of them, and the
validation images; the features go into memory-mapped files that all workers read. The folder's
name is a hash of everything that the features depend on, so a cached set is never out of date.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from mask_ray import data
from mask_ray.config import MaskRayError, TrainSettings, home
from mask_ray.files import make_private, publish_folder, sha256_of
from mask_ray.images.augment import augment
from mask_ray.models.predictor import FeatureExtractor
from mask_ray.progress import Progress, say
from mask_ray.stalls import watched

# Increase it when the code computes other features for the same key.
_FORMAT = 2

_MANIFEST = "manifest.json"
_BATCH_SIZE = 32

# Views depend only on the pixels and this seed, so that runs of all seeds share them.
_VIEW_SEED = 0


class FeatureError(MaskRayError):
    """The features cannot be written where the workers could read them."""


@dataclass(frozen=True)
class Key:
    """Everything that the features depend on."""

    data_digest: str
    split_digest: str
    val_fraction: float
    test_fraction: float
    backbone: str
    image_size: int
    alpha: float
    augmented_views: int
    augmentation: float
    version: int = _FORMAT

    @property
    def name(self) -> str:
        """Hash of the key, short enough to name a folder."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:24]


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which gets a manifest and its final name when all is written."""
    make_private(folder.parent)
    unfinished = Path(tempfile.mkdtemp(".unfinished", f"{folder.name}.", folder.parent))
    try:
        yield unfinished
        manifest = {"sha256": _digests(unfinished)}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2))
        try:
            publish_folder(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another run has written the same features
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def key_of(settings: TrainSettings, images: data.ImageData, backbone: bytes) -> Key:
    """Return the key of the features of these images."""
    return Key(
        data_digest=images.summary.digest,
        split_digest=images.summary.split_digest,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        backbone=hashlib.sha256(backbone).hexdigest(),
        image_size=settings.image_size,
        alpha=settings.alpha,
        augmented_views=settings.augmented_views,
        augmentation=settings.augmentation if settings.augmented_views else 0.0,
    )


def prepare(
    settings: TrainSettings,
    images: data.ImageData,
    backbone: bytes,
    *,
    own_folder: Path,
    num_cpus: float,
) -> Path:
    """Find or compute the features of the training and validation images; return their folder.

    Args:
        settings: Settings of the run: augmented views, and whether to use the cache.
        images: Decoded images.
        backbone: The backbone as an ONNX file.
        own_folder: Folder of this run, used when the cache is off or cannot be written.
        num_cpus: Cores to compute on.

    Raises:
        FeatureError: the run's own folder cannot be written.
    """
    key = key_of(settings, images, backbone)
    if not settings.feature_cache:
        return _compute_own(key, images, backbone, own_folder, num_cpus)
    folder = home() / "features" / key.name
    try:
        if _is_whole(folder):
            say(f"features: found in {folder}")
            return folder
        return _compute(key, images, backbone, folder, num_cpus)
    except OSError as error:
        say(f"features: {folder.parent} cannot be used ({error}): this run keeps its own")
        return _compute_own(key, images, backbone, own_folder, num_cpus)


def _compute_own(
    key: Key, images: data.ImageData, backbone: bytes, folder: Path, num_cpus: float
) -> Path:
    if folder.exists():  # left by an earlier attempt at the run
        shutil.rmtree(folder)
    try:
        return _compute(key, images, backbone, folder, num_cpus)
    except OSError as error:
        raise FeatureError(
            f"the features of {images.summary.num_images} images cannot be kept in {folder}: "
            f"{error}"
        ) from error


def _is_whole(folder: Path) -> bool:
    """Return whether all files match their digests; delete a damaged folder."""
    if not folder.exists():
        return False
    try:
        whole = json.loads((folder / _MANIFEST).read_text()) == {"sha256": _digests(folder)}
    except (OSError, ValueError):
        whole = False
    if not whole:
        say(f"features: {folder} is damaged: computing them again")
        shutil.rmtree(folder)
    return whole


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file except the manifest, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.name != _MANIFEST)
    return {path.name: sha256_of(path) for path in files}


def _compute(
    key: Key, images: data.ImageData, backbone: bytes, folder: Path, num_cpus: float
) -> Path:
    started = time.perf_counter()
    with _appearing(folder) as unfinished:
        files = _Files(unfinished, images.summary)
        progress = Progress("features", files.num_images)
        extracted = _extracted(key, images, backbone, num_cpus)
        for batch in watched(extracted.iter_batches(batch_size=256), "features"):
            files.write(batch)
            progress.add(len(batch["label"]))
        files.finish()
        (unfinished / "key.json").write_text(json.dumps(asdict(key), indent=2))
    seconds = time.perf_counter() - started
    num_views = images.summary.counts["train"].total() * key.augmented_views
    say(f"features: {files.num_images} images and {num_views} augmented views, {seconds:.1f} s")
    return folder


def _extracted(key: Key, images: data.ImageData, backbone: bytes, num_cpus: float) -> Dataset:
    """Compute the features of all images outside the test split.

    Returns:
        Rows with `features` (float16, (1 + views, D)), `digest`, `label` and `split`.
    """
    decoded = images.decoded(("train", "val"))
    if images.kept:
        decoded = decoded.materialize()  # by tasks, before the extractors take all CPUs
    # If images are not decoded yet, a quarter of the cores reads and decodes them.
    reserved = 0 if images.kept else max(1, num_cpus // 4)
    return decoded.map_batches(
        _Extractor,
        fn_constructor_args=(ray.put(backbone), key.augmented_views, key.augmentation),
        batch_size=_BATCH_SIZE,
        num_cpus=min(1, num_cpus if images.kept else num_cpus / 2),
        compute=ActorPoolStrategy(size=max(1, int(num_cpus - reserved))),
    )


class _Extractor:
    """Runs the backbone over batches of images on one core."""

    def __init__(self, onnx: Any, num_views: int, strength: float) -> None:
        # Ray Data does not resolve references among constructor arguments.
        self._extractor = FeatureExtractor(ray.get(onnx))
        self._num_views = num_views
        self._strength = strength

    def __call__(self, batch: data.Batch) -> data.Batch:
        used = (batch["error"] == "") & (batch["split"] != "test")
        batch = {name: batch[name][used] for name in ("image", "digest", "label", "split")}
        plain = self._extractor.extract(batch["image"])
        views = np.repeat(plain[:, None], 1 + self._num_views, axis=1).astype(np.float16)
        trained = np.flatnonzero(batch["split"] == "train")
        for view in range(1, 1 + self._num_views if len(trained) else 1):
            drawn = [self._augmented(image, view) for image in batch["image"][trained]]
            views[trained, view] = self._extractor.extract(np.stack(drawn))
        return {"features": views} | {name: batch[name] for name in ("digest", "label", "split")}

    def _augmented(self, image: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([_VIEW_SEED, view, zlib.crc32(image.tobytes())])
        return augment(image, rng, self._strength)


class _Files:
    """Writes features and labels of each split, batch by batch, and the order of their digests.

    Rows are stored in the order in which they arrive, which depends on the run that computed
    them. Sorted by the digests of their image files they have the same order for every run.
    """

    def __init__(self, folder: Path, summary: data.Summary) -> None:
        self._folder = folder
        self._counts = {name: summary.counts[name].total() for name in ("train", "val")}
        self._features: dict[str, Any] = {}
        self._labels: dict[str, Any] = {}
        self._digests: dict[str, Any] = {}
        self._filled = dict.fromkeys(self._counts, 0)

    @property
    def num_images(self) -> int:
        return sum(self._counts.values())

    def write(self, batch: dict[str, NDArray[Any]]) -> None:
        for split, count in self._counts.items():
            rows = np.flatnonzero(batch["split"] == split)
            features = batch["features"][rows] if split == "train" else batch["features"][rows, :1]
            if split not in self._features:
                self._open(split, (count, *features.shape[1:]))
            filled = slice(self._filled[split], self._filled[split] + len(rows))
            self._features[split][filled] = features
            self._labels[split][filled] = batch["label"][rows]
            self._digests[split][filled] = batch["digest"][rows]
            self._filled[split] = filled.stop

    def _open(self, split: str, shape: tuple[int, ...]) -> None:
        path = self._folder / f"{split}_features.npy"
        self._features[split] = open_memmap(path, "w+", np.float16, shape)
        # Reserve the whole file now: writing to a mapped file on a full disk kills the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self._labels[split] = np.empty(shape[0], np.int64)
        # Half of the 64 hex digits are enough to tell all files apart.
        self._digests[split] = np.empty(shape[0], "S32")

    def finish(self) -> None:
        assert self._filled == self._counts, f"{self._filled} rows arrived of {self._counts}"
        for split, labels in self._labels.items():
            self._features[split].flush()
            np.save(self._folder / f"{split}_labels.npy", labels)
            order = np.lexsort((labels, self._digests[split]))
            np.save(self._folder / f"{split}_order.npy", order)
