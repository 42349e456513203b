"""What tells that a source has changed, without reading its images."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

from mask_ray.config import MaskRayError
from mask_ray.data.sources import several, shown, stats

_TIMEOUT_S = 30.0
_VALIDATORS = ("etag", "last-modified", "content-length")


def of_source(source: str) -> str:
    """Another text whenever the source is another: names, sizes and times of files, here or in a
    store, or what the server says of a URL. Files that a manifest names are taken to stay as they
    are. Of several sources, one a line, all.

    Raises:
        MaskRayError: the server or the store does not answer.
    """
    return "\n".join(map(_of_one, several(source)))


def _of_one(source: str) -> str:
    if source.startswith(("http://", "https://")):
        return _of_url(source)
    if "://" in source:
        return _digest(f"{path}\0{size}\0{time}" for path, size, time in stats(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _digest(_lines(path))
    if path.is_file():
        return _digest([_line(path.name, path.stat())])
    return source


def _of_url(url: str) -> str:
    try:
        response = httpx.head(url.partition("#")[0], follow_redirects=True, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MaskRayError(
            f"{shown(url)} is not reached: {error or type(error).__name__}"
        ) from error
    told = [response.headers.get(name, "") for name in _VALIDATORS] if response.is_success else []
    # A server that refuses HEAD, or tells nothing, may still answer GET: it is asked every time.
    return _digest([url, *told] if any(told) else [url, uuid.uuid4().hex])


def _lines(folder: Path, is_below: bool = False) -> Iterator[str]:
    """One for each file below, in a fixed order, without a list of all of them.

    Links are followed where sources follow them: to class folders, and to files.
    """
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise MaskRayError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=not is_below):
            yield f"{entry.name}/"
            yield from _lines(Path(entry.path), is_below=True)
            yield "/"
        elif entry.is_file():
            yield _line(entry.name, entry.stat())


def _line(name: str, stat: os.stat_result) -> str:
    return f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"


def _digest(lines: Iterator[str] | list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
