"""A source of labelled images -> checked, split, decoded Ray Datasets.

Files that cannot be decoded are left out, counted and named; they never end a run. Nothing here
knows how a model is trained or served.
"""

import hashlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from mask_ray import synthetic
from mask_ray.config import DataSettings, ImageLimits, MaskRayError, SplitName
from mask_ray.file_list import FileList
from mask_ray.images import ImageError, decode_resized
from mask_ray.progress import Progress

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
DEFAULT_NUM_DRAWN = 2000

# Decoded images are kept between epochs while they take less than this share of Ray's object
# store, twice: as read, and by split. Above it every epoch reads and decodes them anew.
KEPT_SHARE_OF_OBJECT_STORE = 0.2

# The least that a task reserves. Half a core, so that a machine whose cores the workers have nearly
# all reserved can still feed them.
LEAST_TASK_CPUS = 0.5

_NUM_BAD_FILES_SHOWN = 10

Batch = dict[str, NDArray[Any]]


class DataError(MaskRayError):
    """The data set cannot be used; the message says what is missing and what was found."""


@dataclass(frozen=True)
class Summary:
    """What a data set holds, after one pass over it."""

    counts: dict[SplitName, Counter[str]]
    digest: str
    bad_files: dict[str, str] = field(repr=False)

    @property
    def num_images(self) -> int:
        """Readable images, over all classes and splits."""
        return sum(split.total() for split in self.counts.values())

    def report(self) -> str:
        """A few lines for people: images by split and class, and the first bad files."""
        splits = ", ".join(
            f"{split} {counts.total()} ({', '.join(f'{n} {k}' for k, n in sorted(counts.items()))})"
            for split, counts in self.counts.items()
        )
        lines = [f"{self.num_images} images: {splits}"]
        if self.bad_files:
            lines.append(f"{len(self.bad_files)} unreadable files left out:")
            named = itertools.islice(self.bad_files.items(), _NUM_BAD_FILES_SHOWN)
            lines += [f"  {path}: {reason}" for path, reason in named]
        if len(self.bad_files) > _NUM_BAD_FILES_SHOWN:
            lines.append("  ... (all of them in bad_files.json of the run)")
        return "\n".join(lines)


@dataclass(frozen=True)
class ImageData:
    """A checked data set.

    Args:
        decoded: Gives, for splits, the rows of at least these, decoded: `image` (uint8, shape
            (image_size, image_size, 3)), `label` (index into `class_names`), `split`, `path`,
            `digest` and `error` (empty where the image is readable).
        class_names: In the order of labels.
        summary: Of all rows.
        kept: Whether all is decoded already; otherwise each pass over it reads files and decodes
            them.
        task_cpus: What each task reserves.
    """

    decoded: Callable[[Sequence[SplitName]], Dataset]
    class_names: list[str]
    summary: Summary
    kept: bool
    task_cpus: float = LEAST_TASK_CPUS

    def split(self, *names: SplitName) -> Dataset:
        """Rows `image` and `label` of these splits."""
        selected = map_rows(self.decoded(names), _select, self.task_cpus, splits=names)
        return selected.materialize() if self.kept else selected


@dataclass(frozen=True)
class _Source:
    """Rows `path`, `bytes` and `label`, not read yet."""

    dataset: Dataset
    class_names: list[str]
    num_files: int


def load(
    settings: DataSettings,
    image_size: int,
    *,
    needed: Sequence[SplitName] = SPLITS,
    task_cpus: float = LEAST_TASK_CPUS,
    file_list: Path | None = None,
) -> ImageData:
    """Read, check, split and decode a data set. Ray must be running.

    Args:
        settings: Source, limits and split.
        image_size: Side of the decoded images, in pixels.
        needed: Splits that must have images of every class.
        task_cpus: What each task reserves: a whole core where all nodes have one to spare.
            With less, Ray keeps more processes than cores, and starts some anew at each pass.
        file_list: Where a `FileList` of all files goes.

    Raises:
        DataError: no such folder, fewer than two classes, or a class without readable images in
            a split that needs them.
    """
    source = _open_source(settings, task_cpus)

    def decoded(splits: Sequence[SplitName]) -> Dataset:
        return map_rows(
            source.dataset,
            _decode_batch,
            task_cpus,
            image_size=image_size,
            settings=settings,
            splits=splits,
        )

    every = decoded(SPLITS)
    kept = _fits_object_store(source.num_files, image_size)
    if kept:
        every = every.materialize()
    summary = summarise(every, source.class_names, source.num_files, file_list)
    _check_no_class_is_empty(summary, source.class_names, needed)
    return ImageData(
        (lambda splits: every) if kept else decoded, source.class_names, summary, kept, task_cpus
    )


def _open_source(settings: DataSettings, task_cpus: float) -> _Source:
    """Find the images without reading them.

    Raises:
        DataError: no such folder, or fewer than two classes in it.
    """
    context = ray.data.DataContext.get_current()
    # Without it, the order of rows depends on which task ends first, and runs do not repeat.
    context.execution_options.preserve_order = True
    # Its bars take several lines for each of theirs where the output is not a terminal, as in a
    # job's log. `Progress` says as much.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if is_synthetic(settings.data):
        return _drawn(num_drawn(settings.data), settings.seed, task_cpus)
    return _folder(check_folder(settings.data), settings.seed, task_cpus)


def is_synthetic(source: str) -> bool:
    """Whether `source` is `synthetic` or `synthetic:N`, rather than a folder."""
    return source.partition(":")[0] == "synthetic"


def num_drawn(source: str) -> int:
    """How many images `synthetic` or `synthetic:N` stands for."""
    return int(source.partition(":")[2] or DEFAULT_NUM_DRAWN)


def check_folder(data: str) -> Path:
    """The folder, if it holds at least two folders of images.

    Raises:
        DataError: it does not.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise DataError(
            f"data must be an existing folder or synthetic[:N]; got {data}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    if len(class_names := _class_names(root)) < 2:
        raise DataError(
            f"data must hold at least 2 folders of images, one per class; "
            f"{root} holds {len(class_names)}: {', '.join(class_names) or 'none'}"
        )
    return root.resolve()


def _class_names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_files(root: Path) -> dict[str, list[Path]]:
    """All files of each class folder and the folders in it, but hidden ones."""
    return {
        name: [
            path
            for path in sorted((root / name).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
        for name in _class_names(root)
    }


def _folder(root: Path, seed: int, task_cpus: float) -> _Source:
    by_class = list_files(root)
    class_names = list(by_class)
    files = [str(path) for paths in by_class.values() for path in paths]
    if not files:
        raise DataError(f"data must hold images; every class folder in {root} is empty")
    labels = [label for label, paths in enumerate(by_class.values()) for _ in paths]
    dataset = ray.data.read_datasource(
        _Files(files, labels, seed),
        override_num_blocks=_num_blocks(len(files)),
        num_cpus=task_cpus,
    )
    return _Source(dataset, class_names, len(files))


class _Files(Datasource):
    """Rows `path`, `bytes` and `label` of local files.

    `ray.data.read_binary_files` makes a block of every file, which takes half as long as decoding
    a photo.
    """

    def __init__(self, files: list[str], labels: list[int], seed: int) -> None:
        super().__init__()
        self._files = np.asarray(files, dtype=object)
        self._labels = np.asarray(labels, dtype=np.int64)
        self._seed = seed

    def estimate_inmemory_data_size(self) -> None:
        """Not known without looking at every file."""

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """Files come class by class; rows should not, and in each epoch otherwise."""
        execution = data_context._execution_idx if data_context is not None else 0
        order = np.random.default_rng([self._seed, execution]).permutation(len(self._files))
        return [
            ReadTask(
                partial(_read_files, self._files[rows], self._labels[rows]),
                BlockMetadata(len(rows), None, None, None),
                per_task_row_limit=per_task_row_limit,
            )
            for rows in np.array_split(order, parallelism)
        ]


def _read_files(files: NDArray[Any], labels: NDArray[np.int64]) -> list[pa.Table]:
    encoded = pa.array([Path(file).read_bytes() for file in files], pa.binary())
    return [pa.table({"path": pa.array(files), "bytes": encoded, "label": labels})]


def _drawn(num_images: int, seed: int, task_cpus: float) -> _Source:
    indices = ray.data.range(num_images, override_num_blocks=_num_blocks(num_images))
    return _Source(
        map_rows(indices, _draw_batch, task_cpus, seed=seed),
        list(synthetic.CLASS_NAMES),
        num_images,
    )


def _draw_batch(batch: Batch, seed: int) -> dict[str, Any]:
    drawn = [synthetic.encode(int(index), seed=seed) for index in batch["id"]]
    return {
        "path": [f"synthetic/{seed}/{index}.jpg" for index in batch["id"]],
        "bytes": [encoded for encoded, _ in drawn],
        "label": [synthetic.CLASS_NAMES.index(class_name) for _, class_name in drawn],
    }


def map_rows(dataset: Dataset, function: Any, task_cpus: float, **arguments: Any) -> Dataset:
    """Apply `function(batch, **arguments)`, in tasks that reserve `task_cpus` each."""
    # Whole blocks: with a batch size, Ray would read in tasks of their own, and send what they read
    # to the tasks that decode.
    return dataset.map_batches(
        function, batch_size=None, zero_copy_batch=True, num_cpus=task_cpus, fn_kwargs=arguments
    )


def _num_blocks(num_files: int) -> int:
    """Blocks of up to 256 images, but enough of them to keep a small machine's cores busy."""
    return max(math.ceil(num_files / 256), min(num_files, 8))


def _fits_object_store(num_files: int, image_size: int) -> bool:
    store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    return num_files * image_size**2 * 3 <= KEPT_SHARE_OF_OBJECT_STORE * store_bytes


def _decode_batch(
    batch: Batch, image_size: int, settings: DataSettings, splits: Sequence[SplitName]
) -> dict[str, Any]:
    batch["digest"] = np.array([digest_of(encoded) for encoded in batch["bytes"]], str)
    batch["split"] = np.array([split_of(digest, settings) for digest in batch["digest"]], str)
    wanted = np.isin(batch["split"], splits)
    rows = {name: column[wanted] for name, column in batch.items()}
    encoded = rows.pop("bytes")
    pixels = np.zeros((len(encoded), image_size, image_size, 3), dtype=np.uint8)
    errors = [_decode_into(*row, settings) for row in zip(pixels, encoded, strict=True)]
    return rows | {"image": pixels, "error": np.array(errors, str)}


def _decode_into(pixels: NDArray[np.uint8], encoded: bytes, limits: ImageLimits) -> str:
    """Why it cannot be decoded, if so; then the pixels are left as they are."""
    try:
        pixels[:] = decode_resized(encoded, len(pixels), limits)
    except ImageError as error:
        return str(error)
    return ""


def digest_of(encoded: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(encoded).hexdigest()


def split_of(digest: str, settings: DataSettings) -> SplitName:
    """The split of a file, by its content alone.

    Copies of a file share a split, and adding files moves no other file.

    Args:
        digest: SHA-256 of the file's bytes, in hex.
        settings: Its `test_fraction` and `val_fraction` are the shares of those splits.
    """
    position = int(digest[:16], 16) / 2**64
    if position < settings.test_fraction:
        return "test"
    return "val" if position < settings.test_fraction + settings.val_fraction else "train"


def _select(batch: Batch, splits: tuple[SplitName, ...]) -> Batch:
    wanted = np.isin(batch["split"], splits) & (batch["error"] == "")
    return {"image": batch["image"][wanted], "label": batch["label"][wanted]}


def summarise(
    decoded: Dataset, class_names: list[str], num_files: int, file_list: Path | None = None
) -> Summary:
    """Count a data set and give it a digest, in one streaming pass.

    The digest is the sum, modulo 2^256, of the SHA-256 of each label with its file's SHA-256:
    it depends on the labelled contents but not on names or order. See AdHash in Bellare and
    Micciancio 1997, https://doi.org/10.1007/3-540-69053-0_13.
    """
    counts: dict[SplitName, Counter[str]] = {name: Counter() for name in SPLITS}
    bad_files: dict[str, str] = {}
    total = 0
    progress = Progress("reading", num_files)
    with FileList(file_list) as listed:
        for row in _rows(decoded, ["label", "split", "path", "digest", "error"]):
            progress.add(1)
            class_name = class_names[row["label"]]
            listed.add(row["path"], row["digest"], row["split"], class_name, row["error"])
            if row["error"]:
                bad_files[row["path"]] = row["error"]
                continue
            counts[row["split"]][class_name] += 1
            labelled = hashlib.sha256(f"{class_name}\0{row['digest']}".encode()).digest()
            total = (total + int.from_bytes(labelled)) % 2**256
    return Summary(counts, f"{total:064x}", bad_files)


def _rows(dataset: Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in dataset.select_columns(columns).iter_batches(batch_size=4096):
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
