"""What the text of a source means: which kind it is, and the file system it is in."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from mask_ray.config import MaskRayError

DEFAULT_NUM_DRAWN = 2000

ARCHIVE_ENDINGS = (
    ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz",
)  # fmt: skip
MANIFEST_ENDINGS = (".csv", ".parquet")
# Of a Hugging Face image folder; where both are, the first counts.
METADATA = ("metadata.csv", "metadata.jsonl")

KINDS = (
    "synthetic[:N], a folder, a .zip or .tar[.gz|.bz2|.xz] archive, a .csv or .parquet manifest, "
    "an http(s) URL of an archive, or a URI such as s3://bucket/folder"
)

_OF_ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs")


class DataError(MaskRayError):
    """The data set cannot be used; the message says what is missing and what was found."""


@dataclass(frozen=True)
class Place:
    """A file or folder, and what reads it.

    Args:
        path: As the file system names it.
        filesystem: None for this machine's own files.
        prefix: What makes an address of a path: `s3://`, or nothing.
        has_own_access: Whether the URI said how the store is reached, by an endpoint or
            credentials, rather than the environment.
    """

    path: str
    filesystem: pafs.FileSystem | None = None
    prefix: str = ""
    has_own_access: bool = False

    def at(self, path: str) -> "Place":
        """Another path in the same file system."""
        return replace(self, path=path)

    def child(self, name: str) -> "Place":
        """A file in this folder, or in a folder of it."""
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def parent(self) -> "Place":
        """The folder that holds it."""
        return self.at(self.path.rpartition("/")[0])

    def info(self) -> pafs.FileInfo:
        """Type, size and time of last change.

        Raises:
            DataError: the file system does not answer.
        """
        return reached(self, lambda: self.opener().get_file_info(self.path))

    def is_folder(self) -> bool:
        """Whether it is a folder that exists."""
        return self.info().type == pafs.FileType.Directory

    def is_file(self) -> bool:
        """Whether it is a file that exists."""
        return self.info().type == pafs.FileType.File

    def opener(self) -> pafs.FileSystem:
        """What opens its files as streams."""
        return self.filesystem or pafs.LocalFileSystem()

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}"


def reached(place: object, ask: Callable[[], Any]) -> Any:
    """What `ask` gives, or a DataError that names the place."""
    try:
        return ask()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place} cannot be read: {error}") from error


def shown(data: str) -> str:
    """Sources as they may be printed and stored: without what a URI has that could be secret, its
    user, password and query.
    """
    return "\n".join(map(_shown, several(data)))


def _shown(source: str) -> str:
    scheme, colon, rest = source.partition("://")
    if not colon or scheme == "file":
        return source
    address, mark, digest = rest.partition("#sha256=")
    netloc, slash, path = re.split(r"[?#]", address, maxsplit=1)[0].partition("/")
    return f"{scheme}://{netloc.rpartition('@')[2]}{slash}{path}{mark}{digest}"


def several(data: str) -> list[str]:
    """The sources that `data` names, one a line."""
    return [line for line in map(str.strip, data.splitlines()) if line]


def is_synthetic(source: str) -> bool:
    """Whether `source` is `synthetic` or `synthetic:N`, rather than files."""
    return source.partition(":")[0] == "synthetic"


def num_drawn(source: str) -> int:
    """How many images `synthetic` or `synthetic:N` stands for."""
    return int(source.partition(":")[2] or DEFAULT_NUM_DRAWN)


def is_url(source: str) -> bool:
    """Whether it is fetched over HTTP."""
    return source.startswith(("http://", "https://"))


def is_archive(source: str) -> bool:
    """Whether it is to be unpacked: by the name's ending, but for URLs, which always are."""
    source = source.partition("#sha256=")[0]
    path = urlsplit(source).path if "://" in source else source
    return is_url(source) or path.lower().endswith(ARCHIVE_ENDINGS)


def is_manifest(place: Place) -> bool:
    """Whether its name is that of a table of files."""
    return place.path.lower().endswith(MANIFEST_ENDINGS)


def locate(source: str) -> Place:
    """Where a source is; nothing but a URL has to be fetched first.

    Raises:
        DataError: nothing here can open such a URI.
    """
    scheme, colon, rest = source.partition("://")
    if not colon:
        return Place(str(Path(source).expanduser().absolute()))
    if scheme == "file":
        return Place(unquote(rest))
    try:
        filesystem, path = _open_uri(scheme, source)
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        told = str(error).replace(source, shown(source))
        raise DataError(
            f"{shown(source)} cannot be opened: {told}; a source must be {KINDS}"
        ) from error
    parts = urlsplit(source)
    has_own_access = scheme in _OF_ARROW and bool(parts.query or "@" in parts.netloc)
    return Place(path.rstrip("/"), filesystem, f"{scheme}://", has_own_access)


def _open_uri(scheme: str, uri: str) -> tuple[pafs.FileSystem, str]:
    """By pyarrow, which reads without Python's lock, or else by fsspec.

    Credentials, and for S3 the endpoint (`AWS_ENDPOINT_URL`), come from the environment.
    """
    if scheme in _OF_ARROW:
        return pafs.FileSystem.from_uri(uri)
    filesystem, path = fsspec.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
