"""Download archives and unpack them under `home()`, by the SHA-256 of the archive.

sources/DIGEST/             content of an archive
sources/downloads/KEY.part  partial download; KEY is a hash of the address
sources/downloads/KEY.json  version of the partial download, and digest of the last complete one

A download ends at its limits: bytes, time, and the disk space that stays free.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import httpx
from filelock import FileLock

from mask_ray import files, proxies
from mask_ray.config import DownloadLimits, Uri, home, revealed
from mask_ray.data.sources import archives
from mask_ray.data.sources.location import DataError, is_url, locate, reached, shown
from mask_ray.progress import Progress, say

_MIB = 2**20
_CHUNK_BYTES = _MIB
_TIMEOUT_S = 30.0
# Attempts in a row without a new byte.
_MAX_ATTEMPTS = 5
_FIRST_WAIT_S = 0.2
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class _Known:
    """State of the download from an address.

    Args:
        version: The server's validator (ETag or Last-Modified) of the partial or complete
            download.
        digest: SHA-256 of the complete archive; empty if it is partial.
    """

    version: str = ""
    digest: str = ""

    @classmethod
    def read(cls, file: Path) -> "_Known":
        try:
            return cls(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, file: Path) -> None:
        files.write_text(file, json.dumps(self.__dict__))


def unpacked(source: str) -> Path:
    """Download an archive if it is remote, and unpack it, both once. Returns its folder.

    Raises:
        DataError: the archive cannot be read or unpacked, or does not match its `#sha256=`.
    """
    source = revealed(source)
    address, wanted = _split_digest(source)
    if wanted and _folder(wanted).is_dir():
        return archives.entered(_folder(wanted))
    if is_url(source) or locate(address).filesystem is not None:
        return archives.entered(_fetched(address, wanted))
    path = Path(locate(address).path)
    if not path.is_file():
        raise DataError(
            f"a source must be an existing archive; got {shown(source)}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    return archives.entered(_unpacked_file(path, source, wanted))


def _split_digest(source: str) -> tuple[str, str]:
    address, mark, digest = source.partition("#sha256=")
    digest = digest.strip().lower()
    if mark and (len(digest) != 64 or not _HEX.issuperset(digest)):
        raise DataError(f"#sha256= must be followed by 64 hexadecimal digits; got {shown(source)}")
    return address, digest


def _folder(digest: str) -> Path:
    return home() / "sources" / digest


def _unpacked_file(path: Path, source: str, wanted: str) -> Path:
    """Unpack a local archive. Returns its folder.

    Raises:
        DataError: the archive does not have this digest, or cannot be unpacked.
    """
    digest = files.sha256_of(path)
    _check_digest(source, digest, wanted)
    folder = _folder(digest)
    with _locked(folder.parent / "downloads" / f"{digest}.lock"):
        if not folder.is_dir():
            say(f"unpacking {shown(source)}")
            archives.extract(path, folder, name=shown(source))
    return folder


def _check_digest(source: str, digest: str, wanted: str) -> None:
    if wanted and digest != wanted:
        raise DataError(
            f"{shown(source)} must have the SHA-256 {wanted}; what is there has {digest}"
        )


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let only one of several concurrent runs download and unpack."""
    files.make_private(file.parent)
    with FileLock(file):
        yield


def _fetched(address: str, wanted: str) -> Path:
    """Download and unpack a remote archive. Returns its folder."""
    key = hashlib.sha256(address.encode()).hexdigest()
    part = home() / "sources" / "downloads" / f"{key}.part"
    with _locked(part.with_suffix(".lock")):
        known = _Known.read(part.with_suffix(".json"))
        if not (known.digest and _folder(known.digest).is_dir()):
            known = replace(known, digest="")
        version = _download(address, part, known)
        if version is None:
            _check_digest(address, known.digest, wanted)
            return _folder(known.digest)
        try:
            folder = _unpacked_file(part, address, wanted)
        finally:
            # A broken archive would stay broken if it were resumed.
            part.unlink(missing_ok=True)
        _Known(version, folder.name).write(part.with_suffix(".json"))
        return folder


def _download(address: str, part: Path, known: _Known) -> str | None:
    """Download an archive to `part`, resuming an earlier attempt if it is at a URL.

    Returns:
        The version; None if it is the known one.

    Raises:
        DataError: the download fails, or exceeds its limits.
    """
    budget = _Budget(shown(address), part, DownloadLimits.from_environment())
    fetch = _fetch_url if is_url(address) else _copy_remote
    try:
        return fetch(address, part, known, budget)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{shown(address)} cannot be written under MASK_RAY_HOME: {error.strerror or error}"
        ) from error


class _Budget:
    """Ends a download at its limits. It is asked before bytes are written.

    Args:
        name: The address, in errors.
        part: File that is written.
        limits: The limits.
    """

    def __init__(self, name: str, part: Path, limits: DownloadLimits) -> None:
        self._name, self._part, self._limits = name, part, limits
        self._deadline_s = time.monotonic() + limits.timeout_s

    def check_size(self, num_bytes: int) -> None:
        """Reject a download of this size in all.

        Raises:
            DataError: it is over the limit.
        """
        if num_bytes > self._limits.max_bytes:
            self._part.unlink(missing_ok=True)
            raise DataError(
                f"{self._name} must have at most {self._limits.max_bytes} bytes "
                f"(MASK_RAY_DOWNLOAD_MAX_BYTES); it has {num_bytes} or more"
            )

    def check_room(self, num_bytes: int) -> None:
        """Reject more bytes than fit beside the reserve.

        Raises:
            DataError: the disk has less room.
        """
        free = shutil.disk_usage(self._part.parent).free
        if num_bytes + self._limits.reserve_bytes > free:
            self._part.unlink(missing_ok=True)
            raise DataError(
                f"{self._name} needs {num_bytes} bytes more, and {self._limits.reserve_bytes} must "
                f"stay free (MASK_RAY_DOWNLOAD_RESERVE_BYTES); {free} are free under MASK_RAY_HOME"
            )

    def check_time(self) -> None:
        """End a download that takes too long. What it has got is kept.

        Raises:
            DataError: the deadline has passed.
        """
        if time.monotonic() > self._deadline_s:
            raise DataError(
                f"{self._name} must arrive within {self._limits.timeout_s:g} s "
                "(MASK_RAY_DOWNLOAD_TIMEOUT_S); it did not"
            )

    def receive(self, chunks: Iterable[bytes], file: BinaryIO, progress: "_Fetching") -> None:
        """Write the chunks to the end of a file."""
        size = file.tell()
        for chunk in chunks:
            size += len(chunk)
            self.check_time()
            self.check_size(size)
            self.check_room(len(chunk))
            file.write(chunk)
            progress.add(len(chunk))


def _fetch_url(url: str, part: Path, known: _Known, budget: _Budget) -> str | None:
    attempt, received_before = 0, -1
    while True:
        budget.check_time()
        try:
            return _attempt(url, part, known, budget)
        except httpx.TransportError as error:
            known = _Known.read(part.with_suffix(".json"))
            received = part.stat().st_size if part.exists() else 0
            attempt = 1 if received > received_before else attempt + 1
            received_before = max(received, received_before)
            if attempt >= _MAX_ATTEMPTS:
                raise DataError(
                    f"{shown(url)} cannot be fetched: {_reason(error, url)}; "
                    f"{received} bytes are kept, and the next run resumes from there"
                ) from error
            time.sleep(_FIRST_WAIT_S * 2**attempt)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DataError(f"{shown(url)} cannot be fetched: {_reason(error, url)}") from error


def _attempt(url: str, part: Path, known: _Known, budget: _Budget) -> str | None:
    with (
        proxies.client(follow_redirects=True, timeout=_TIMEOUT_S) as client,
        client.stream("GET", url, headers=_headers(part, known)) as response,
    ):
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return None
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the archive is now
            raise httpx.ReadError("the archive changed")
        if response.is_server_error:
            raise httpx.ReadError(f"got status {response.status_code} {response.reason_phrase}")
        if not response.is_success:
            raise DataError(
                f"{shown(url)} must answer with status 200; got {response.status_code} "
                f"{response.reason_phrase}"
            )
        version = _version(response)
        _Known(version).write(part.with_suffix(".json"))
        _receive(response, part, budget)
        return version


def _reason(error: Exception, url: str) -> str:
    return Uri(url).scrub(str(error)) or type(error).__name__


def _headers(part: Path, known: _Known) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "mask_ray"}
    validator = known.version
    if known.digest:
        name = "If-None-Match" if validator.startswith(('"', "W/")) else "If-Modified-Since"
        return headers | ({name: validator} if validator else {})
    # A weak validator does not mean that all bytes are equal: RFC 9110, section 13.1.5.
    if part.exists() and part.stat().st_size and validator and not validator.startswith("W/"):
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": validator}
    return headers


def _version(response: httpx.Response) -> str:
    headers = response.headers
    return str(headers.get("etag") or headers.get("last-modified") or "")


def _receive(response: httpx.Response, part: Path, budget: _Budget) -> None:
    """Append a partial answer to `part`, or write a complete one.

    Raises:
        httpx.TransportError: the answer is cut off, or starts at another byte than requested.
        DataError: it is over a limit.
    """
    is_partial = response.status_code == httpx.codes.PARTIAL_CONTENT
    start = part.stat().st_size if is_partial and part.exists() else 0
    if is_partial and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
        part.unlink(missing_ok=True)
        raise httpx.ReadError(f"the server must resume at byte {start}; it does elsewhere")
    header = response.headers.get("content-length", "")
    length = int(header) if header.isdecimal() else 0
    budget.check_size(start + length)
    budget.check_room(length)
    progress = _Fetching(response.url.path, start + length if header.isdecimal() else None, start)
    with part.open("ab" if is_partial else "wb") as file:
        budget.receive(response.iter_raw(), file, progress)


def _copy_remote(uri: str, part: Path, known: _Known, budget: _Budget) -> str | None:
    """Copy an archive from an object store to `part`. Returns as `_download`."""
    place = locate(uri)
    if not place.is_file():
        raise DataError(f"a source must be an existing archive; got {shown(uri)}")
    info = place.info()
    version = f"{info.size} {info.mtime_ns}"
    if known.digest and known.version == version:
        return None
    budget.check_size(info.size)
    budget.check_room(info.size)
    progress = _Fetching(str(place), info.size)
    stream = reached(place, lambda: place.opener().open_input_stream(place.path))
    with stream, part.open("wb") as file:
        chunks = iter(lambda: reached(place, lambda: stream.read(_CHUNK_BYTES)), b"")
        budget.receive(chunks, file, progress)
    return version


class _Fetching:
    """Reports progress of a download in MiB."""

    def __init__(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        total = None if total_bytes is None else total_bytes // _MIB
        self._progress = Progress(f"fetching {what}", total, unit="MiB")
        self._bytes = done_bytes
        self._progress.add(done_bytes // _MIB)

    def add(self, num_bytes: int) -> None:
        before = self._bytes // _MIB
        self._bytes += num_bytes
        self._progress.add(self._bytes // _MIB - before)
