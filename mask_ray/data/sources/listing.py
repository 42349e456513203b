"""List the files of a source in an Arrow table, at the cost of a path and a few bytes a row.

Columns: `path` (relative to the root), `class` (class name), `given_split` and `given_group`.
The last three are empty if the source gives none.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from mask_ray.data.sources.location import DataError, Place, reached

_ROWS_TOGETHER = 65_536

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("class", pa.dictionary(pa.int32(), pa.string())),
        ("given_split", pa.dictionary(pa.int32(), pa.string())),
        ("given_group", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """The files of one source.

    Args:
        root: Folder that paths are relative to. Absolute paths, and paths under a root without
            a path, are complete.
        files: Table of `SCHEMA`.
    """

    root: Place
    files: pa.Table

    def class_names(self) -> set[str]:
        """Return the names of all classes that have files."""
        return set(pc.unique(self.files["class"].cast(pa.string())).to_pylist()) - {""}


def list_folder(root: Place) -> Listing:
    """List all files of a folder except hidden ones. A file's class is its folder below the root.

    Raises:
        DataError: the folder cannot be read.
    """
    paths = _walk(root.path, "") if root.filesystem is None else _remote_paths(root)
    try:
        tables = reached(root, lambda: [_table(some) for some in _chunks(paths)])
    except UnicodeEncodeError as error:
        raise DataError(f"names of files must be UTF-8; {root} has {error.object!r}") from error
    return Listing(root, pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries())


def _chunks(paths: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(paths, _ROWS_TOGETHER)):
        yield some


def _table(paths: list[str]) -> pa.Table:
    return of_columns(paths, [path.partition("/")[0] if "/" in path else "" for path in paths])


def of_columns(
    paths: Iterable[str] | pa.Array,
    class_names: Iterable[str] | pa.Array | None = None,
    splits: pa.Array | None = None,
    groups: pa.Array | None = None,
) -> pa.Table:
    """Build a table of `SCHEMA`. Missing columns are empty."""
    path = pa.array(paths, pa.string())
    nothing = pa.repeat("", len(path))
    columns = (path, class_names, splits, groups)
    filled = [nothing if c is None else pa.array(c, pa.string()) for c in columns]
    return pa.table(
        [column.cast(kind) for column, kind in zip(filled, SCHEMA.types, strict=True)],
        schema=SCHEMA,
    )


def _walk(folder: str, below: str) -> Iterator[str]:
    """Yield paths in the order of their parts, without holding all of them."""
    with os.scandir(folder) as scanned:
        entries = sorted(
            (entry for entry in scanned if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )
    for entry in entries:
        # A class may be a link to a folder. Further down, links could form a cycle.
        if entry.is_dir(follow_symlinks=not below):
            yield from _walk(entry.path, f"{below}{entry.name}/")
        elif entry.is_file():
            yield f"{below}{entry.name}"


def _remote_paths(root: Place) -> Iterator[str]:
    return (path for path, _ in infos_below(root))


def infos_below(root: Place) -> Iterator[tuple[str, pafs.FileInfo]]:
    """Yield the files of an object store that are not hidden, sorted by their relative paths.

    Takes one request for every thousand files, rather than one for every folder.

    Raises:
        DataError: the store does not answer.
    """
    selector = pafs.FileSelector(root.path, recursive=True)
    infos = reached(root, lambda: root.opener().get_file_info(selector))
    start = len(root.path.rstrip("/")) + 1
    files = {info.path[start:]: info for info in infos if info.type == pafs.FileType.File}
    for path in sorted(files):
        if not any(part.startswith(".") for part in path.split("/")):
            yield path, files[path]
