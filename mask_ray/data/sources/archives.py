"""Archives -> folders. What an archive says of itself is not trusted.

Nothing is written outside the folder, no link or device is made, and an archive that would grow
beyond all measure is given up at the limit, whatever its headers promise. A folder appears whole
or not at all.
"""

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
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

from mask_ray.data.sources.location import METADATA, DataError
from mask_ray.progress import Progress

_CHUNK_BYTES = 2**20
# All that is said of one member: names, times, attributes. Photos' have some hundred bytes.
_MAX_HEADER_BYTES = 2**20
_TAR_BUFFER_BYTES = 2**17
# What macOS adds to every zip.
_NOT_DATA = "__MACOSX"
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # a password is needed
    ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an archive may become.

    Args:
        max_members: Files and folders.
        max_bytes: All files together.
        max_ratio: All files together, in sizes of the archive. Photos hardly shrink; drawings
            that are not compressed do, by up to 50.
        always_bytes: Allowed at any ratio.
    """

    max_members: int = 5_000_000
    max_bytes: int = 2**40
    max_ratio: int = 100
    always_bytes: int = 64 * 2**20

    def bytes_from(self, archive_bytes: int) -> int:
        """How much may come out of an archive of this size."""
        return min(self.max_bytes, max(self.always_bytes, self.max_ratio * archive_bytes))


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


class _Budget:
    """Counts what comes out, and ends it at the limit."""

    def __init__(self, archive: Path, folder: Path, limits: Limits, name: str) -> None:
        self.name = name
        self._limits = limits
        self._max_bytes = limits.bytes_from(archive.stat().st_size)
        self._free_bytes = shutil.disk_usage(folder).free
        self._members = self._bytes = 0

    def member(self) -> None:
        self._members += 1
        if self._members > self._limits.max_members:
            raise DataError(
                f"{self.name} must hold at most {self._limits.max_members} files; it holds more"
            )

    def chunks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """All that the stream gives, counted."""
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
                f"{self.name} needs more than the {self._free_bytes} bytes that are free "
                "under MASK_RAY_HOME"
            )


def extract(
    archive: Path, folder: Path, limits: Limits | None = None, name: str | None = None
) -> None:
    """Unpack a zip or tar archive into a new folder, all of it or nothing.

    The caller keeps others from unpacking into the same folder. Hidden files are left out. `name`
    is what errors call the archive, where not by its path.

    Raises:
        DataError: it is no archive, is broken or locked, holds links, devices or names that lead
            elsewhere, or is over the limits.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _extract_into(partial, archive, limits or Limits(), name or str(archive))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(folder)


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
    """The name, if it stays below the folder on every system."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.partition("/")[0] or "\0" in name:
        raise DataError(f"{archive} must hold relative names without ..; it holds {name!r}")
    return name


def _is_data(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return not any(part.startswith(".") or part == _NOT_DATA for part in parts)


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
            readable = cast(IO[bytes], stream)  # All of it that tarfile asks for.
            with tarfile.open(fileobj=readable, mode="r|", bufsize=_TAR_BUFFER_BYTES) as tar:
                yield _of_tar(tar, stream, folder, budget)


def _of_zip(zipped: zipfile.ZipFile, archive: str) -> Iterator[_Member]:
    for entry in zipped.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(archive, entry.filename)
        yield _Member(entry.filename, entry.is_dir(), partial(zipped.open, entry))


def _uncompressed(archive: Path) -> BufferedIOBase:
    """By its first bytes; tarfile itself would hold all that a few compressed KiB become."""
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
    """The bytes of a tar archive, of which few may be a header.

    tarfile has each header in memory as a whole, however large it says it is.
    """

    def __init__(self, file: BufferedIOBase, archive: str) -> None:
        self._file = file
        self._archive = archive
        self.expect_header()

    def expect_header(self) -> None:
        """What is read from here on is of one header, but for what is read ahead."""
        self._left: int | None = _MAX_HEADER_BYTES + _TAR_BUFFER_BYTES

    def expect_content(self) -> None:
        """What is read from here on is a file's."""
        self._left = None

    def read(self, num_bytes: int) -> bytes:
        """As of a file."""
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
        # It knows of ways out that names alone do not show.
        checked = tarfile.data_filter(entry, str(folder))
        stream.expect_content()
        content = partial(tar.extractfile, entry)
        if entry.isfile() and not _is_data(checked.name):
            _pass_over(content(), budget)
        yield _Member(checked.name, entry.isdir(), content)
        # Or the list of all that were read grows with the archive, as does what is said of all.
        tar.members.clear()  # type: ignore[attr-defined]
        tar.pax_headers.clear()  # type: ignore[attr-defined]
        stream.expect_header()


def _pass_over(content: IO[bytes] | None, budget: _Budget) -> None:
    """What is hidden lies before the next file all the same."""
    assert content is not None
    deque(budget.chunks(content), maxlen=0)


def _no_file(archive: str, name: str) -> DataError:
    return DataError(
        f"{archive} must hold files and folders only; {name!r} is a link, device or other"
    )


def entered(folder: Path) -> Path:
    """The folder, or the only one in it, as archives of one folder have it.

    One that holds files alone is not entered: it is a class, whose name counts.
    """
    while True:
        entries = _shown(folder)
        if len(entries) != 1 or not entries[0].is_dir() or not _has_structure(entries[0]):
            return folder
        folder = entries[0]


def _has_structure(folder: Path) -> bool:
    return any(entry.is_dir() or entry.name in METADATA for entry in _shown(folder))


def _shown(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
