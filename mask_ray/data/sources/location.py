"""Interpret the text of a source: its kind, and the file system it is in."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from mask_ray.config import MaskRayError, Uri, revealed

DEFAULT_NUM_DRAWN = 2000

ARCHIVE_ENDINGS = (
    ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz",
)  # fmt: skip
MANIFEST_ENDINGS = (".csv", ".parquet")
# Tables of a Hugging Face image folder. If both exist, the first one counts.
METADATA = ("metadata.csv", "metadata.jsonl")

KINDS = (
    "synthetic[:N], a folder, a .zip or .tar[.gz|.bz2|.xz] archive, a .csv or .parquet manifest, "
    "an http(s) URL of an archive, or a URI such as s3://bucket/folder"
)

_TITLE_LENGTH = 80
_OF_ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs")


class DataError(MaskRayError):
    """The data set is unusable; the message says what is required and what was found."""


@dataclass(frozen=True)
class Place:
    """A file or folder, and what reads it.

    Args:
        path: Path in the file system.
        filesystem: The file system; None for local files.
        prefix: Prefix that makes a URI of the path, such as `s3://`; empty for local files.
        has_own_access: Whether the URI itself holds the endpoint or credentials; otherwise they
            come from the environment.
    """

    path: str
    filesystem: pafs.FileSystem | None = None
    prefix: str = ""
    has_own_access: bool = False

    def at(self, path: str) -> "Place":
        """Return another path in the same file system."""
        return replace(self, path=path)

    def child(self, name: str) -> "Place":
        """Return a file in or below this folder."""
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def parent(self) -> "Place":
        """Return the folder that holds it."""
        return self.at(self.path.rpartition("/")[0])

    def info(self) -> pafs.FileInfo:
        """Ask for type, size and mtime.

        Raises:
            DataError: the file system does not answer.
        """
        return reached(self, lambda: self.opener().get_file_info(self.path))

    def is_folder(self) -> bool:
        """Check that it exists and is a folder."""
        return self.info().type == pafs.FileType.Directory

    def is_file(self) -> bool:
        """Check that it exists and is a file."""
        return self.info().type == pafs.FileType.File

    def opener(self) -> pafs.FileSystem:
        """Return the file system that opens its files."""
        return self.filesystem or pafs.LocalFileSystem()

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}"


def reached(place: object, read: Callable[[], Any]) -> Any:
    """Call `read`, and turn its errors into a DataError that names the place."""
    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place} cannot be read: {error}") from error


def shown(data: str) -> str:
    """Remove what may be secret in URIs, so that sources may be printed: user, password, query."""
    return "\n".join(line.bare for line in several(data))


def title(data: str) -> str:
    """Return a short name of sources: the last parts of their paths."""
    paths = [re.split("[?#]", line.bare)[0].rstrip("/") for line in several(data)]
    return " + ".join(path.rpartition("/")[2] or path for path in paths)[:_TITLE_LENGTH]


def several(data: str) -> list[Uri]:
    """Split `data` into its sources, one a line."""
    return Uri(data).lines()


def is_synthetic(source: str) -> bool:
    """Check for `synthetic` or `synthetic:N`."""
    return source.partition(":")[0] == "synthetic"


def num_drawn(source: str) -> int:
    """Return the number of images of `synthetic` or `synthetic:N`."""
    return int(source.partition(":")[2] or DEFAULT_NUM_DRAWN)


def is_url(source: str) -> bool:
    """Check for an HTTP URL."""
    return source.startswith(("http://", "https://"))


def is_local(source: str) -> bool:
    """Check for a path, or a `file://` URI."""
    return "://" not in source or source.startswith("file://")


def is_archive(source: str) -> bool:
    """Check for an archive, by the name's ending. A URL always is one."""
    source = source.partition("#sha256=")[0]
    path = urlsplit(source).path if "://" in source else source
    return is_url(source) or path.lower().endswith(ARCHIVE_ENDINGS)


def is_manifest(place: Place) -> bool:
    """Check for a table of files, by the name's ending."""
    return place.path.lower().endswith(MANIFEST_ENDINGS)


def locate(source: str) -> Place:
    """Locate a source that is not an HTTP URL.

    Secrets and variables of a `Uri` are filled in; another text is taken as it is.

    Raises:
        DataError: URIs of this kind are not supported.
        UriError: a secret of a `Uri` is not at hand.
    """
    source = revealed(source)
    scheme, colon, rest = source.partition("://")
    if not colon:
        return Place(str(Path(source).expanduser().absolute()))
    if scheme == "file":
        return Place(unquote(rest))
    try:
        filesystem, path = _open_uri(scheme, source)
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        reason = Uri(source).scrub(str(error).replace(source, shown(source)))
        raise DataError(
            f"{shown(source)} cannot be opened: {reason}; a source must be {KINDS}"
        ) from error
    parts = urlsplit(source)
    has_own_access = scheme in _OF_ARROW and bool(parts.query or "@" in parts.netloc)
    return Place(path.rstrip("/"), filesystem, f"{scheme}://", has_own_access)


def _open_uri(scheme: str, uri: str) -> tuple[pafs.FileSystem, str]:
    """Open with pyarrow, whose reads release the GIL, if it knows the scheme; else with fsspec.

    Credentials, and for S3 the endpoint (`AWS_ENDPOINT_URL`), come from the environment.
    """
    if scheme in _OF_ARROW:
        return pafs.FileSystem.from_uri(uri)
    filesystem, path = fsspec.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
