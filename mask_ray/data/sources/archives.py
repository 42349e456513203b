"""Unpack archives into folders, without trusting their headers.

Nothing is written outside the folder, links and devices are rejected, and unpacking stops at a
size limit, whatever the headers say. A folder is complete or does not appear.
"""

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import IO, cast

from mask_ray import files
from mask_ray.config import DownloadLimits
from mask_ray.data.sources.location import METADATA, DataError
from mask_ray.images.folders import is_junk
from mask_ray.progress import Progress

_CHUNK_BYTES = 2**20
# Names, times and attributes of one member. A photo's header has some hundred bytes.
_MAX_HEADER_BYTES = 2**20
_TAR_BUFFER_BYTES = 2**17
# Control characters, and separators of lines and paragraphs, as Unicode has them.
_CONTROL = frozenset(("Cc", "Zl", "Zp"))
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # a password is needed
    ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Limits of what an archive may unpack to.

    Args:
        max_members: Number of files and folders.
        max_bytes: Size of all files together.
        max_ratio: Size of all files together, as a multiple of the archive's. Photos hardly
            compress; uncompressed drawings do, by a factor of up to 50.
        always_bytes: Size that is allowed at any ratio.
    """

    max_members: int = 5_000_000
    max_bytes: int = 2**40
    max_ratio: int = 100
    always_bytes: int = 64 * 2**20

    def bytes_from(self, archive_bytes: int) -> int:
        """Return the most bytes that an archive of this size may unpack to."""
        return min(self.max_bytes, max(self.always_bytes, self.max_ratio * archive_bytes))


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


class _Budget:
    """Counts unpacked files and bytes, and stops at the limits."""

    def __init__(self, archive: Path, folder: Path, limits: Limits, name: str) -> None:
        self.name = name
        self._limits = limits
        self._max_bytes = limits.bytes_from(archive.stat().st_size)
        reserve_bytes = DownloadLimits.from_environment().reserve_bytes
        self._free_bytes = max(0, shutil.disk_usage(folder).free - reserve_bytes)
        self._members = self._bytes = 0

    def member(self) -> None:
        self._members += 1
        if self._members > self._limits.max_members:
            raise DataError(
                f"{self.name} must hold at most {self._limits.max_members} files; it holds more"
            )

    def chunks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Read the stream to its end, and count the bytes."""
        while chunk := stream.read(_CHUNK_BYTES):
            self._take(len(chunk))
            yield chunk

    def _take(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        if self._bytes > self._max_bytes:
            raise DataError(
                f"{self.name} must unpack to at most {self._max_bytes} bytes, "
                f"{self._limits.max_ratio} times its size; it gives more"
            )
        if self._bytes > self._free_bytes:
            raise DataError(
                f"{self.name} needs more than the {self._free_bytes} bytes that are free under "
                "MASK_RAY_HOME beside the reserve (MASK_RAY_DOWNLOAD_RESERVE_BYTES)"
            )


def extract(
    archive: Path, folder: Path, limits: Limits | None = None, name: str | None = None
) -> None:
    """Unpack a zip or tar archive into a new folder, completely or not at all.

    Hidden files, and those of systems, are skipped. The caller must lock the folder.

    Args:
        archive: File to unpack.
        folder: Folder to create.
        limits: Limits; the defaults if None.
        name: Name of the archive in errors; its path if None.

    Raises:
        DataError: not an archive, broken, encrypted, over the limits, or with links, devices,
            names that lead outside the folder, or names with control characters.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=files.PRIVATE_FOLDER)
    try:
        _extract_into(partial, archive, limits or Limits(), name or str(archive))
        files.publish_folder(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{name or archive} cannot be unpacked: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _extract_into(folder: Path, archive: Path, limits: Limits, name: str) -> None:
    budget = _Budget(archive, folder, limits, name)
    progress = Progress("unpacking", None, unit="files")
    try:
        with _members(archive, folder, name, budget) as members:
            for member in members:
                budget.member()
                target = folder / _checked(member.name, name)
                if not _is_data(member.name):
                    continue
                _write(member, target, budget)
                progress.add(1)
    except _BROKEN as error:
        raise DataError(f"{name} cannot be unpacked: {error}") from error


def _checked(name: str, archive: str) -> str:
    """Return the name, if it stays below the folder on every system, and on one line."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.partition("/")[0] or "\0" in name:
        raise DataError(f"{archive} must hold relative names without ..; it holds {name!r}")
    if any(unicodedata.category(letter) in _CONTROL for letter in name):
        # A terminal would obey them, and a list of files would have a line too many.
        raise DataError(
            f"{archive} must hold names without control characters or line breaks; it holds "
            f"{name!a}"
        )
    return name


def _is_data(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return not any(map(is_junk, parts))


def _write(member: _Member, target: Path, budget: _Budget) -> None:
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    stream = member.open()
    assert stream is not None
    with stream, target.open("wb") as file:
        file.writelines(budget.chunks(stream))


@contextmanager
def _members(
    archive: Path, folder: Path, name: str, budget: _Budget
) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _of_zip(zipped, name)
    else:
        with _uncompressed(archive) as file:
            stream = _TarStream(file, name)
            readable = cast(IO[bytes], stream)  # tarfile calls nothing but `read`
            with tarfile.open(fileobj=readable, mode="r|", bufsize=_TAR_BUFFER_BYTES) as tar:
                yield _of_tar(tar, stream, folder, budget)


def _of_zip(zipped: zipfile.ZipFile, archive: str) -> Iterator[_Member]:
    for entry in zipped.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(archive, entry.filename)
        yield _Member(entry.filename, entry.is_dir(), partial(zipped.open, entry))


def _uncompressed(archive: Path) -> BufferedIOBase:
    """Open by the first bytes. tarfile would hold all that a few compressed KiB expand to."""
    with archive.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(archive)
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith(b"\xfd7zXZ"):
        return lzma.open(archive)
    return archive.open("rb")


class _TarStream:
    """Reads a tar archive, and limits the size of its headers.

    tarfile reads each header into memory as a whole, at the size that it claims.
    """

    def __init__(self, file: BufferedIOBase, archive: str) -> None:
        self._file = file
        self._archive = archive
        # What may still be read; None for no limit.
        self._left: int | None = None
        self.expect_header()

    def expect_header(self) -> None:
        """Limit what is read from here on to one header, and what tarfile reads ahead."""
        self._left = _MAX_HEADER_BYTES + _TAR_BUFFER_BYTES

    def expect_content(self) -> None:
        """Stop limiting: what is read from here on is a file's content."""
        self._left = None

    def read(self, num_bytes: int) -> bytes:
        """Read up to so many bytes, as from a file."""
        content = self._file.read(num_bytes)
        if self._left is not None:
            self._left -= len(content)
            if self._left < 0:
                raise DataError(
                    f"{self._archive} must have headers of at most {_MAX_HEADER_BYTES} bytes; "
                    "it has a longer one"
                )
        return content


def _of_tar(
    tar: tarfile.TarFile, stream: _TarStream, folder: Path, budget: _Budget
) -> Iterator[_Member]:
    archive = budget.name
    for entry in tar:
        if not (entry.isfile() or entry.isdir()):
            raise _no_file(archive, entry.name)
        _checked(entry.name, archive)
        # It also rejects ways out of the folder that the name alone does not show.
        checked = tarfile.data_filter(entry, str(folder))
        stream.expect_content()
        content = partial(tar.extractfile, entry)
        if entry.isfile() and not _is_data(checked.name):
            _skip(content(), budget)
        yield _Member(checked.name, entry.isdir(), content)
        # Otherwise the list of members, and global headers, grow with the archive.
        tar.members.clear()  # type: ignore[attr-defined]
        tar.pax_headers.clear()  # type: ignore[attr-defined]
        stream.expect_header()


def _skip(content: IO[bytes] | None, budget: _Budget) -> None:
    """Read a hidden file, which a stream cannot seek past, and count it."""
    assert content is not None
    deque(budget.chunks(content), maxlen=0)


def _no_file(archive: str, name: str) -> DataError:
    return DataError(
        f"{archive} must hold files and folders only; {name!r} is a link, device or other"
    )


def entered(folder: Path) -> Path:
    """Descend while a folder holds nothing but one folder, as in archives of a folder.

    A folder that holds only files is a class, and is not entered.
    """
    while True:
        entries = _shown(folder)
        if len(entries) != 1 or not entries[0].is_dir() or not _has_structure(entries[0]):
            return folder
        folder = entries[0]


def _has_structure(folder: Path) -> bool:
    return any(entry.is_dir() or entry.name in METADATA for entry in _shown(folder))


def _shown(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not is_junk(entry.name)]
