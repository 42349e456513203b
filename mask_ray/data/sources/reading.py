"""Read tables of files into rows with the files' bytes, in Ray Data's tasks."""

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

# Rows that a task reads at a time.
_ROWS_TOGETHER = 256
_NUM_REMOTE_READS = 16
# Errors that concern one file only.
_OF_ONE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)


def num_blocks(num_files: int) -> int:
    """Return the number of blocks: of up to 256 images, but at least 8 to keep cores busy."""
    return max(math.ceil(num_files / 256), min(num_files, 8))


def task_options(task_cpus: float) -> dict[str, Any]:
    """Return the options of tasks that reserve so many CPUs each.

    Where they reserve none, only their number keeps them from being more than there are cores.
    """
    if task_cpus:
        return {"num_cpus": task_cpus}
    return {"num_cpus": 0, "concurrency": max(1, int(ray.cluster_resources().get("CPU", 1)))}


class Files(Datasource):
    """Rows `path` (path or URI), `bytes`, `error` (empty if the file could be read), and the other
    columns of `files`.

    `ray.data.read_binary_files` makes a block of every file, which takes half as long as decoding
    a photo.

    Args:
        roots: Folders that paths are relative to.
        files: Columns `root` (index into `roots`) and `path`, and any others.
        seed: Seed of the order of rows, which differs from epoch to epoch; None to keep the order.
    """

    def __init__(self, roots: list[Place], files: pa.Table, seed: int | None) -> None:
        super().__init__()
        self._roots = roots
        self._files = files.combine_chunks()
        self._seed = seed

    def estimate_inmemory_data_size(self) -> None:
        """Return None: the size is unknown before reading."""

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """Make one task for each block, with only the rows of its own files."""
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
    """Locate the files of a table with the columns `root` and `path`."""
    named = zip(files["root"].to_pylist(), files["path"].to_pylist(), strict=True)
    return [_below(roots[root], path) for root, path in named]


def read_each(places: list[Place]) -> Iterator[tuple[bytes, str]]:
    """Yield the bytes of each file, and its error or an empty string, in order.

    Remote files are read several at a time, since most of the time is spent waiting.

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
    """Read a file. Returns its bytes and an empty string, or no bytes and the error.

    Raises:
        OSError: a store does not answer, which is not the file's fault.
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
