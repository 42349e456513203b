"""List the files of a source in an Arrow table, at the cost of a path and a few bytes a row.

Columns: `path` (relative to the root), `class` (class name), `given_split` and `given_group`.
The last three are empty if the source gives none. `folder_splits` fills them in for a folder.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from mask_ray.data.sources.location import DataError, Place, reached
from mask_ray.images.folders import Skipped, is_junk, walk

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
        skipped: What a local folder has beside them.
        is_folder: Whether classes are yet to be read from the paths.
    """

    root: Place
    files: pa.Table
    skipped: Skipped = field(default_factory=Skipped)
    is_folder: bool = False

    def class_names(self) -> set[str]:
        """Return the names of all classes that have files."""
        return set(pc.unique(self.files["class"].cast(pa.string())).to_pylist()) - {""}


def list_folder(root: Place) -> Listing:
    """List all files of a folder, without classes. Hidden files and those of systems are left out.

    Raises:
        DataError: the folder, or one below it, cannot be read.
    """
    skipped = Skipped()
    # A class may be a link to a folder. Further down, links could form a cycle.
    is_local = root.filesystem is None
    paths = walk(root.path, skipped, linked_depth=1) if is_local else _remote_paths(root)
    try:
        tables = reached(root, lambda: [of_columns(some) for some in _chunks(paths)])
    except UnicodeEncodeError as error:
        raise DataError(f"names of files must be UTF-8; {root} has {error.object!r}") from error
    if skipped.unreadable:
        raise DataError(f"{root} cannot be read: no permission for {skipped.unreadable[0]}")
    files = pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries()
    return Listing(root, files, skipped, is_folder=True)


def _chunks(paths: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(paths, _ROWS_TOGETHER)):
        yield some


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


def _remote_paths(root: Place) -> Iterator[str]:
    return (path for path, _ in infos_below(root))


def infos_below(root: Place) -> Iterator[tuple[str, pafs.FileInfo]]:
    """Yield the files of an object store except hidden ones and those of systems, by their paths.

    Takes one request for every thousand files, rather than one for every folder.

    Raises:
        DataError: the store does not answer.
    """
    selector = pafs.FileSelector(root.path, recursive=True)
    infos = reached(root, lambda: root.opener().get_file_info(selector))
    start = len(root.path.rstrip("/")) + 1
    files = {info.path[start:]: info for info in infos if info.type == pafs.FileType.File}
    for path in sorted(files):
        if not any(map(is_junk, path.split("/"))):
            yield path, files[path]
