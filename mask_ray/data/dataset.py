"""Turn a source of labelled images into checked, split, decoded Ray Datasets.

Files that cannot be decoded are skipped, counted and named; they never stop a run. This module
does not depend on how models are trained or served.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import ray_internals
from mask_ray.config import DataSettings, ImageLimits, SplitName
from mask_ray.data import near_duplicates, sources
from mask_ray.data.file_list import FileList, open_file_list
from mask_ray.data.inventory import Inventory
from mask_ray.data.sources import DataError as DataError
from mask_ray.data.sources import is_synthetic as is_synthetic
from mask_ray.data.sources import num_drawn as num_drawn
from mask_ray.data.sources.reading import num_blocks, task_options
from mask_ray.data.splits import LEFT_OUT, SplitConflictError, assign, dropped_key
from mask_ray.data.splits import SPLITS as SPLITS
from mask_ray.data.splits import split_of as split_of
from mask_ray.data.summary import Summary, digest_of, summarise
from mask_ray.images import synthetic
from mask_ray.images.decode import decode, resize
from mask_ray.images.errors import ImageError
from mask_ray.progress import Progress
from mask_ray.stalls import watched

# Decoded images are kept between epochs if they take less than this share of Ray's object store.
# Otherwise every epoch reads and decodes all files again. The store holds up to three copies: all
# images, the images by split, and, while features are computed, those of train and val.
KEPT_SHARE_OF_OBJECT_STORE = 0.2

# CPUs that a task reserves at least. Half a core, so that tasks still run on a machine where the
# workers have reserved nearly all cores.
LEAST_TASK_CPUS = 0.5

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ImageData:
    """A checked data set.

    Args:
        decoded: Function from splits to their decoded rows: `image` (uint8 of shape
            (image_size, image_size, 3)), `label` (index into `class_names`), `split`, `path`,
            `digest` and `error` (empty if the image is readable).
        class_names: Class names, in the order of labels.
        summary: Summary of all rows.
        kept: Whether decoded images are kept; if not, each pass reads and decodes the files.
        task_cpus: CPUs that each task reserves.
    """

    decoded: Callable[[Sequence[SplitName]], Dataset]
    class_names: list[str]
    summary: Summary
    kept: bool
    task_cpus: float = LEAST_TASK_CPUS

    def split(self, *names: SplitName) -> Dataset:
        """Return rows `image` and `label` of these splits."""
        return self._readable(names, ("image", "label"))

    def named(self, *names: SplitName) -> Dataset:
        """Return rows `image`, `label` and `path` of these splits."""
        return self._readable(names, ("image", "label", "path"))

    def identified(self, *names: SplitName) -> Dataset:
        """Return rows `image`, `label` and `digest` of these splits."""
        return self._readable(names, ("image", "label", "digest"))

    def _readable(self, names: Sequence[SplitName], columns: Sequence[str]) -> Dataset:
        selected = map_rows(
            self.decoded(names), _select, self.task_cpus, splits=names, columns=columns
        )
        return selected.materialize() if self.kept else selected


@dataclass(frozen=True)
class Source:
    """The files of all sources, before they are read.

    Args:
        dataset: Rows `path`, `bytes`, `error` (empty if the file could be read), `label`, and
            `given_split` and `given_group` (empty if the source gives none).
        class_names: Class names, in the order of labels.
        num_files: Number of rows.
    """

    dataset: Dataset
    class_names: list[str]
    num_files: int


def load(
    settings: DataSettings,
    image_size: int,
    *,
    needed: Sequence[SplitName] = SPLITS,
    task_cpus: float | None = None,
    file_list: Path | None = None,
) -> ImageData:
    """Read, check, split and decode a data set. Ray must be running.

    Args:
        settings: Source, limits and shares of the splits.
        image_size: Side of the decoded images, in pixels.
        needed: Splits that must have images of every class.
        task_cpus: CPUs that each task reserves; None for what is free. With less than one, Ray
            keeps more processes than cores.
        file_list: File for the `FileList` of all files; None to write none.

    Raises:
        DataError: a source cannot be read, there are fewer than two classes, or a class has no
            readable images in a needed split.
    """
    task_cpus = spare_cpus() if task_cpus is None else task_cpus
    source = _open_all(settings, task_cpus)
    every = _decoded(source, image_size, settings, task_cpus)
    kept = fits_object_store(source.num_files, image_size)
    if kept:
        every = every.materialize()
    with open_file_list(file_list, source.class_names) as listed:
        inventory, bad_files = take_stock(every, source.num_files, listed, task_cpus)
        try:
            assignment = assign(inventory, settings)
        except SplitConflictError as error:
            raise DataError(error.describe(_paths(every, task_cpus))) from error
        if listed is not None:
            listed.finish((*SPLITS, LEFT_OUT), assignment.indices)
    summary = summarise(inventory, assignment, source.class_names, bad_files)
    _check_no_class_is_empty(summary, source.class_names, needed)
    moved = ray.put(assignment.moved)

    def decoded(splits: Sequence[SplitName]) -> Dataset:
        if kept:
            return map_rows(
                every, _keep_splits, task_cpus, settings=settings, splits=splits, moved=moved
            )
        return _decoded(source, image_size, settings, task_cpus, splits=splits, moved=moved)

    return ImageData(decoded, source.class_names, summary, kept, task_cpus)


def _decoded(
    source: Source, image_size: int, settings: DataSettings, task_cpus: float, **only: Any
) -> Dataset:
    return map_rows(
        source.dataset, _decode_batch, task_cpus, image_size=image_size, settings=settings, **only
    )


def _open_all(settings: DataSettings, task_cpus: float) -> Source:
    """Open the data and the fixed test set, whose rows are marked `held_out`.

    Raises:
        DataError: as `open_source`; or the test set has other classes.
    """
    source = open_source(settings, task_cpus)
    if settings.test_data is None:
        return source
    test = open_source(settings.model_copy(update={"data": settings.test_data}), task_cpus)
    if test.class_names != source.class_names:
        raise DataError(
            f"test_data must have the classes of data, {', '.join(source.class_names)}; "
            f"got {', '.join(test.class_names)}"
        )
    own, fixed = (
        map_rows(each.dataset, _mark, task_cpus, held_out=held_out)
        for each, held_out in ((source, False), (test, True))
    )
    return Source(own.union(fixed), source.class_names, source.num_files + test.num_files)


def _mark(batch: Batch, held_out: bool) -> Batch:
    return batch | {"held_out": np.full(len(batch["label"]), held_out)}


def _paths(decoded: Dataset, task_cpus: float) -> list[str]:
    """Return the paths of readable images, in the order of the inventory."""
    rows = _rows(decoded, ["path", "error"], task_cpus)
    return [row["path"] for row in rows if not row["error"]]


def open_source(settings: DataSettings, task_cpus: float) -> Source:
    """List the images without reading them.

    Raises:
        DataError: a source cannot be read, or all together have fewer than two classes.
    """
    context = ray.data.DataContext.get_current()
    # Otherwise the order of rows depends on which task ends first, and runs are not reproducible.
    context.execution_options.preserve_order = True
    # In a job's log, Ray's bars take many lines. `Progress` prints the same in fewer.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if is_synthetic(settings.data):
        return _drawn(num_drawn(settings.data), settings.seed, task_cpus)
    labelled = sources.list_labelled(settings.data)
    dataset = sources.read(labelled, settings.seed, task_cpus)
    return Source(dataset, labelled.class_names, len(labelled.files))


def params(settings: DataSettings) -> dict[str, Any]:
    """Return the settings as a run's parameters, without secrets in URIs."""
    uris = {"data": settings.data, "test_data": settings.test_data}
    return settings.model_dump() | {
        name: sources.shown(source) for name, source in uris.items() if source is not None
    }


def _drawn(num_images: int, seed: int, task_cpus: float) -> Source:
    # Not `ray.data.range`, whose tasks take a whole CPU each.
    parts = np.array_split(np.arange(num_images), num_blocks(num_images))
    blocks = [pa.table({"id": part}) for part in parts]
    return Source(
        map_rows(ray.data.from_blocks(blocks), _draw_batch, task_cpus, seed=seed),
        list(synthetic.CLASS_NAMES),
        num_images,
    )


def _draw_batch(batch: Batch, seed: int) -> dict[str, Any]:
    drawn = [synthetic.encode(int(index), seed=seed) for index in batch["id"]]
    return {
        "path": [f"synthetic/{seed}/{index}.jpg" for index in batch["id"]],
        "bytes": [encoded for encoded, _ in drawn],
        "label": [synthetic.CLASS_NAMES.index(class_name) for _, class_name in drawn],
    } | dict.fromkeys(("error", "given_split", "given_group"), [""] * len(drawn))


def map_rows(
    dataset: Dataset, function: Callable[..., Batch], task_cpus: float, **arguments: Any
) -> Dataset:
    """Apply `function(batch, **arguments)`, in tasks that reserve `task_cpus` each."""

    @wraps(function)  # its name is the operator's in Ray's statistics
    def apply(batch: Batch, **arguments: Any) -> Iterator[Batch]:
        rows = function(batch, **arguments)
        # No batch instead of an empty one, in which Ray would not recognise the images' type.
        if any(len(column) for column in rows.values()):
            yield rows

    # Whole blocks: with a batch size, Ray would read files in separate tasks, and send their bytes
    # to the tasks that decode.
    return dataset.map_batches(
        apply, batch_size=None, zero_copy_batch=True, fn_kwargs=arguments, **task_options(task_cpus)
    )


def spare_cpus() -> float:
    """Return the CPUs that a task reserves: none if other jobs hold all, to run beside them."""
    if not ray.is_initialized():
        return LEAST_TASK_CPUS
    if ray_internals.are_data_tasks_placed():  # bundles may be smaller than a task
        return 0
    free = max((n.get("CPU", 0) for n in ray_internals.free_resources_by_node()), default=0)
    return LEAST_TASK_CPUS if free >= LEAST_TASK_CPUS else 0


def fits_object_store(num_files: int, image_size: int) -> bool:
    """Return whether decoded images may be kept, see `KEPT_SHARE_OF_OBJECT_STORE`."""
    store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    return num_files * image_size**2 * 3 <= KEPT_SHARE_OF_OBJECT_STORE * store_bytes


def _decode_batch(
    batch: Batch,
    image_size: int,
    settings: DataSettings,
    splits: Sequence[SplitName] | None = None,
    moved: Any = None,
) -> dict[str, Any]:
    """Decode a batch: without `splits` all rows, with signatures; else only rows of `splits`."""
    batch["digest"] = np.array([digest_of(encoded) for encoded in batch["bytes"]], str)
    if splits is not None:
        batch = _keep_splits(batch, settings, splits, moved)
    encoded = batch.pop("bytes")
    pixels = np.zeros((len(encoded), image_size, image_size, 3), dtype=np.uint8)
    signatures = np.zeros((len(encoded), near_duplicates.SIGNATURE_BYTES), dtype=np.uint8)
    rows = zip(pixels, signatures, encoded, strict=True)
    errors = [
        error or _decode_into(*row, settings, splits is None)
        for error, row in zip(batch["error"], rows, strict=True)
    ]
    batch |= {"image": pixels, "error": np.array(errors, str)}
    return batch | {"signature": signatures} if splits is None else batch


def _decode_into(
    pixels: NDArray[np.uint8],
    signature: NDArray[np.uint8],
    encoded: bytes,
    limits: ImageLimits,
    is_signed: bool,
) -> str:
    """Decode an image into `pixels`. Returns the error, or an empty string."""
    try:
        picture = decode(encoded, limits, at_least_px=len(pixels))
    except ImageError as error:
        return str(error)
    pixels[:] = resize(picture, len(pixels))
    if is_signed:
        signature[:] = near_duplicates.signature(pixels, *picture.shape[:2])
    return ""


def _keep_splits(
    batch: Batch, settings: DataSettings, splits: Sequence[SplitName], moved: Any
) -> Batch:
    """Select the rows of these splits, and add the column `split`."""
    exceptions: dict[str, str] = ray.get(moved)
    rows = zip(batch["digest"].tolist(), batch["given_split"].tolist(), strict=True)
    named = [
        exceptions.get(dropped_key(digest, given))
        or exceptions.get(digest)
        or split_of(digest, settings)
        for digest, given in rows
    ]
    batch["split"] = np.array(named, str)
    if "held_out" in batch:
        batch["split"] = np.where(batch["held_out"], "test", batch["split"])
    wanted = np.isin(batch["split"], splits)
    batch.pop("signature", None)
    return {name: column[wanted] for name, column in batch.items()}


def _select(
    batch: Batch, splits: tuple[SplitName, ...], columns: tuple[str, ...] = ("image", "label")
) -> Batch:
    wanted = np.isin(batch["split"], splits) & (batch["error"] == "")
    return {name: batch[name][wanted] for name in columns}


def take_stock(
    decoded: Dataset, num_files: int, listed: FileList | None, task_cpus: float
) -> tuple[Inventory, dict[str, str]]:
    """Collect all but the pixels of readable images, and the errors of bad files, in one pass.

    Raises:
        DataError: the source gives a file a split that does not exist.
    """
    parts: list[Inventory] = []
    bad_files: dict[str, str] = {}
    progress = Progress("reading", num_files)
    for batch in watched(_without(decoded, "image", task_cpus), "reading"):
        progress.add(len(batch["label"]))
        if listed is not None:
            listed.add(batch)
        bad = batch["error"] != ""
        bad_files.update(zip(batch["path"][bad], batch["error"][bad], strict=True))
        try:
            parts.append(
                Inventory.of_batch({name: column[~bad] for name, column in batch.items()}, SPLITS)
            )
        except ValueError as error:
            raise DataError(f"data: {error}") from error
    return Inventory.joined(parts), bad_files


def _without(dataset: Dataset, column: str, task_cpus: float) -> Iterator[Batch]:
    rest = dataset.drop_columns([column], **task_options(task_cpus))
    return iter(rest.iter_batches(batch_size=4096, batch_format="numpy"))


def _rows(dataset: Dataset, columns: list[str], task_cpus: float) -> Iterator[dict[str, Any]]:
    selected = dataset.select_columns(columns, **task_options(task_cpus))
    for batch in selected.iter_batches(batch_size=4096):
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _check_no_class_is_empty(
    summary: Summary, class_names: list[str], needed: Sequence[SplitName]
) -> None:
    bad = ""
    if summary.bad_files:
        path, reason = next(iter(summary.bad_files.items()))
        bad = f"; {len(summary.bad_files)} unreadable files, such as {path}: {reason}"
    if not summary.num_images:
        raise DataError(f"data holds no readable images{bad}")
    for split in needed:
        missing = [name for name in class_names if not summary.counts[split][name]]
        if missing:
            raise DataError(
                f"every class needs images in every split; {split} has none of "
                f"{', '.join(missing)} ({summary.num_images} readable images in all{bad}). "
                "Add images, or change val_fraction and test_fraction"
            )
