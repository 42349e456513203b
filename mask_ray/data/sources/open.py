"""Fetch sources, list their files, and read them as rows."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from mask_ray.config import Uri
from mask_ray.data.sources.downloads import unpacked
from mask_ray.data.sources.folder_splits import class_folders, classes_and_splits
from mask_ray.data.sources.listing import Listing, infos_below, list_folder
from mask_ray.data.sources.location import (
    KINDS,
    DataError,
    Place,
    is_archive,
    is_local,
    is_manifest,
    is_synthetic,
    locate,
    num_drawn,
    reached,
    several,
    shown,
)
from mask_ray.data.sources.manifests import has_metadata, read_image_folder, read_manifest
from mask_ray.data.sources.reading import (
    Files,
    num_blocks,
    places_of,
    read_each,
    task_options,
)
from mask_ray.images import synthetic
from mask_ray.progress import say


@dataclass(frozen=True)
class Labelled:
    """The files of all sources, with classes united by name.

    Args:
        roots: Folders that paths are relative to.
        files: Columns `root` (index into `roots`), `path`, `label` (index into `class_names`),
            `given_split` and `given_group` (empty if the source gives none).
        class_names: Class names, in order.
    """

    roots: list[Place]
    files: pa.Table
    class_names: list[str]

    @property
    def reader(self) -> "ImageReader":
        """Reads rows of `files`."""
        return _Reading(self.roots)


def fetch(data: str) -> str:
    """Download and unpack archives, and make local paths absolute.

    Returns the sources, one a line, with folders in place of archives.

    Raises:
        DataError: a source does not exist, or cannot be downloaded or unpacked.
    """
    return Uri.join(map(_fetch, several(data)))


def is_there(data: str) -> bool:
    """Check that the local sources that `fetch` returned still exist."""
    local = [source for source in several(data) if not is_synthetic(source) and is_local(source)]
    return all(Path(locate(source).path).exists() for source in local)


def stats(uri: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size in bytes and mtime (ns since 1970) of each file below a URI, or at it.

    Raises:
        DataError: the store does not answer.
    """
    place = locate(uri)
    files = infos_below(place) if place.is_folder() else [("", place.info())]
    for path, info in files:
        yield path, info.size or 0, info.mtime_ns or 0


def read_file(path: str) -> bytes:
    """Read a file by the `path` of its row.

    Raises:
        DataError: the file cannot be read.
    """
    place = locate(path)

    def read() -> bytes:
        with place.opener().open_input_stream(place.path) as stream:
            return bytes(stream.read())

    return bytes(reached(place, read))


def _fetch(source: str) -> str:
    if is_synthetic(source):
        return source
    if is_archive(source):
        return str(unpacked(source))
    place = locate(source)
    if place.filesystem is not None:
        return source
    path = Path(place.path)
    if not (path.is_dir() or (path.is_file() and is_manifest(place))):
        found = "got" if path.exists() else "there is nothing at"
        raise DataError(
            f"a source must be {KINDS}; {found} {shown(source)}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    return str(path.resolve())


def check(data: str) -> str:
    """Do as `fetch`, and check that local folders have at least two classes.

    Raises:
        DataError: as `fetch`; or there are fewer than two classes.
    """
    fetched = fetch(data)
    sources = [source for source in several(fetched) if not is_synthetic(source)]
    places = [locate(source) for source in sources]
    if places and all(_is_class_folder(place) for place in places):
        names = {name for place in places for name in class_folders(Path(place.path))}
        _check_classes(sorted(names), sources)
    return fetched


def _is_class_folder(place: Place) -> bool:
    return place.filesystem is None and place.is_folder() and not has_metadata(place)


def _check_classes(class_names: Sequence[str], sources: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise DataError(
            "data must hold at least 2 folders of images, one per class, or 2 labels; "
            f"{', '.join(map(shown, sources))} holds {len(class_names)}: "
            f"{', '.join(class_names) or 'none'}{_about_parents(sources)}"
        )


def _about_parents(sources: Sequence[str]) -> str:
    """Return a hint if a source is a folder of one class, beside those of other classes."""
    for place in map(locate, sources):
        if _is_class_folder(place) and not class_folders(Path(place.path)):
            parent = Path(place.path).resolve().parent
            if len(class_folders(parent)) > 1 and any(Path(place.path).iterdir()):
                return f". If {place.path} is one class, give the folder above it, {parent}"
    return ""


def list_labelled(data: str) -> Labelled:
    """List the labelled files of all sources, without reading them.

    Raises:
        DataError: as `fetch`; or there are fewer than two classes, or no files.
    """
    sources = several(fetch(data))
    listings = [_with_classes(_list(source)) for source in sources]
    class_names = sorted(set().union(*(listing.class_names() for listing in listings)))
    empty = {n for s in sources for n in _empty_candidates(locate(s))}
    if not class_names and len(empty) > 1:
        raise DataError(
            "data must hold images; every class folder in "
            f"{', '.join(map(shown, sources))} is empty"
        )
    class_names = sorted({*class_names, *empty})
    _check_classes(class_names, sources)
    _say_alike(class_names)
    tables = [_labelled(index, each, class_names) for index, each in enumerate(listings)]
    return Labelled([each.root for each in listings], pa.concat_tables(tables), class_names)


def _empty_candidates(place: Place) -> list[str]:
    """Return class folders, so that an empty one is reported rather than ignored."""
    return class_folders(Path(place.path)) if _is_class_folder(place) else []


def _list(source: str) -> Listing:
    place = locate(source)
    if is_manifest(place) and place.is_file():
        return read_manifest(place)
    if has_metadata(place):
        return read_image_folder(place)
    if place.filesystem is not None:
        say(f"listing {shown(source)}")
    if not place.is_folder():
        raise DataError(f"a source must be {KINDS}; there is nothing at {shown(source)}")
    return list_folder(place)


def _with_classes(listing: Listing) -> Listing:
    """Read the classes of a folder, and say what was skipped. Manifests have theirs."""
    if not listing.is_folder:
        return listing
    known = classes_and_splits(listing)
    outside = known.files.filter(pc.equal(known.files["class"].cast(pa.string()), ""))
    listing.skipped.outside += outside["path"].to_pylist()
    _say_skipped(listing)
    return known


def _say_skipped(listing: Listing) -> None:
    for line in listing.skipped.describe():
        say(f"{listing.root}: {line}")


def _say_alike(class_names: list[str]) -> None:
    """Name classes that differ in case, spaces or signs alone, and may be one."""
    alike: dict[str, list[str]] = {}
    for name in class_names:
        plain = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
        alike.setdefault(plain or name, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            shown_names = ", ".join(map(repr, names))
            say(f"are these classes one? {shown_names}; if so, give them one name")


def _labelled(index: int, listing: Listing, class_names: list[str]) -> pa.Table:
    """Select the rows that have a class, and add the columns `root` and `label`."""
    named = listing.files["class"].cast(pa.string())
    labels = pc.index_in(named, pa.array(class_names, pa.string())).cast(pa.int64())
    files = listing.files.append_column("label", labels).filter(pc.is_valid(labels))
    return pa.table(
        {
            "root": pa.array(np.full(len(files), index, np.int32)),
            "path": files["path"],
            "label": files["label"],
            "given_split": files["given_split"].cast(pa.string()),
            "given_group": files["given_group"],
        }
    )


def read(labelled: Labelled, seed: int, task_cpus: float) -> Dataset:
    """Read rows `path`, `bytes`, `error`, `label`, `given_split` and `given_group`.

    `seed` determines the order, which differs from epoch to epoch.
    """
    return ray.data.read_datasource(
        Files(labelled.roots, labelled.files, seed),
        override_num_blocks=num_blocks(len(labelled.files)),
        **task_options(task_cpus),
    )


class ImageReader(Protocol):
    """Reads the files of tables with the columns `root` and `path`, in any process."""

    def names(self, files: pa.Table) -> list[str]:
        """Return the path or URI of each file."""

    def contents(self, files: pa.Table) -> Iterator[tuple[bytes, str]]:
        """Yield the bytes of each file, and its error or an empty string.

        Raises:
            OSError: a store does not answer.
        """


def open_images(data: str) -> tuple[pa.Table, ImageReader]:
    """List all images of sources, labelled or not, in the order of their paths.

    Returns a table with the columns `root` and `path`, and its reader.

    Raises:
        DataError: as `fetch`; or there are no files.
    """
    if is_synthetic(data):
        return _table_of(0, [str(index) for index in range(num_drawn(data))]), _Drawing()
    listings = [_list(source) for source in several(fetch(data))]
    for listing in listings:
        _say_skipped(listing)
    tables = [_table_of(root, listing.files["path"]) for root, listing in enumerate(listings)]
    files = pa.concat_tables(tables).combine_chunks()
    if not len(files):
        raise DataError(f"a source must hold images; there is no file in {shown(data)}")
    return files, _Reading([listing.root for listing in listings])


def _table_of(root: int, paths: Any) -> pa.Table:
    return pa.table({"root": np.full(len(paths), root, np.int32), "path": paths})


@dataclass(frozen=True)
class _Reading:
    roots: list[Place]

    def names(self, files: pa.Table) -> list[str]:
        return [str(place) for place in places_of(self.roots, files)]

    def contents(self, files: pa.Table) -> Iterator[tuple[bytes, str]]:
        return read_each(places_of(self.roots, files))


class _Drawing:
    def names(self, files: pa.Table) -> list[str]:
        return [f"synthetic/0/{index}.jpg" for index in files["path"].to_pylist()]

    def contents(self, files: pa.Table) -> Iterator[tuple[bytes, str]]:
        for index in files["path"].to_pylist():
            yield synthetic.encode(int(index))[0], ""
