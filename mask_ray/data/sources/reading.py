"""Tables of files -> rows with the files' bytes, read in Ray Data's tasks."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from mask_ray.data.sources.location import Place
from mask_ray.ray_internals import num_executions

# Rows of a block that are in memory at a time.
_ROWS_TOGETHER = 256
_NUM_REMOTE_READS = 16
# What may be wrong with one file, and leaves the others as they are.
_OF_ONE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)


def num_blocks(num_files: int) -> int:
    """Blocks of up to 256 images, but enough of them to keep a small machine's cores busy."""
    return max(math.ceil(num_files / 256), min(num_files, 8))


class Files(Datasource):
    """Rows `path` (its address), `bytes`, `error` (empty where it could be read), and the further
    columns of `files`.

    `ray.data.read_binary_files` makes a block of every file, which takes half as long as decoding
    a photo.

    Args:
        roots: Where files are.
        files: Columns `root` (index into `roots`) and `path`, and any others.
        seed: Of the order of rows, which is another in each epoch; None for that of `files`.
    """

    def __init__(self, roots: list[Place], files: pa.Table, seed: int | None) -> None:
        super().__init__()
        self._roots = roots
        self._files = files.combine_chunks()
        self._seed = seed

    def estimate_inmemory_data_size(self) -> None:
        """Not known without looking at every file."""

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """One for each block; what a task is sent is of its own files alone."""
        order = np.arange(len(self._files))
        if self._seed is not None:
            execution = num_executions(data_context)
            order = np.random.default_rng([self._seed, execution]).permutation(len(self._files))
        return [
            ReadTask(
                partial(_read_files, self._roots, self._files.take(rows).combine_chunks()),
                BlockMetadata(len(rows), None, None, None),
                per_task_row_limit=per_task_row_limit,
            )
            for rows in np.array_split(order, parallelism)
        ]


def _read_files(roots: list[Place], files: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(files), _ROWS_TOGETHER):
        yield _read_some(roots, files.slice(start, _ROWS_TOGETHER))


def _read_some(roots: list[Place], files: pa.Table) -> pa.Table:
    places = places_of(roots, files)
    encoded, errors = zip(*read_each(places), strict=True)
    columns: dict[str, Any] = {
        "path": pa.array([str(place) for place in places]),
        "bytes": pa.array(encoded, pa.binary()),
        "error": pa.array(errors, pa.string()),
    }
    others = [name for name in files.column_names if name not in ("root", "path")]
    return pa.table(columns | {name: files[name] for name in others})


def places_of(roots: list[Place], files: pa.Table) -> list[Place]:
    """Where the files of a table are, whose columns are as those of `Files`."""
    named = zip(files["root"].to_pylist(), files["path"].to_pylist(), strict=True)
    return [_below(roots[root], path) for root, path in named]


def read_each(places: list[Place]) -> Iterator[tuple[bytes, str]]:
    """The bytes of each file, and why it cannot be read, or nothing; in order.

    From elsewhere many are read at a time, since all but a moment of each is waiting.

    Raises:
        OSError: a store does not answer.
    """
    if all(place.filesystem is None for place in places):
        yield from map(_read_file, places)
        return
    with ThreadPoolExecutor(_NUM_REMOTE_READS) as pool:
        yield from pool.map(_read_file, places)


def _below(root: Place, path: str) -> Place:
    if not root.path or (root.filesystem is None and path.startswith("/")):
        return root.at(path)
    return root.child(path)


def _read_file(place: Place) -> tuple[bytes, str]:
    """Its bytes; or none, and why they cannot be read.

    Raises:
        OSError: a file system does not answer, which says nothing of the file.
    """
    try:
        if place.filesystem is None:
            return Path(place.path).read_bytes(), ""
        with place.filesystem.open_input_stream(place.path) as stream:
            return stream.read(), ""
    except _OF_ONE_FILE as error:
        return b"", f"cannot be read: {error.strerror or error}"
    except OSError as error:
        if place.filesystem is not None:
            raise
        return b"", f"cannot be read: {error.strerror or error}"
