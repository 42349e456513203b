"""Detect whether a source has changed, without reading its images."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

from mask_ray import proxies
from mask_ray.config import MaskRayError, Uri, revealed
from mask_ray.data.sources import several, shown, stats

_TIMEOUT_S = 30.0
_VALIDATORS = ("etag", "last-modified", "content-length")


def of_source(source: str) -> str:
    """Return a text that changes when the source does; for several sources, one line each.

    A source counts as unchanged if paths, sizes and mtimes of its files match, or the validators
    of its URL. Files that a manifest names are assumed to be unchanged.

    Raises:
        MaskRayError: the server or the object store does not answer.
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
        with proxies.client(follow_redirects=True, timeout=_TIMEOUT_S) as http:
            response = http.head(revealed(url).partition("#")[0])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = Uri(url).scrub(str(error)) or type(error).__name__
        raise MaskRayError(f"{shown(url)} is not reached: {reason}") from error
    headers = response.headers if response.is_success else {}
    validators = [headers.get(name, "") for name in _VALIDATORS]
    # Without validators, as when a server rejects HEAD, the source always counts as changed.
    return _digest([url, *validators] if any(validators) else [url, uuid.uuid4().hex])


def _lines(folder: Path, is_below: bool = False) -> Iterator[str]:
    """Yield a line for each file below, in a fixed order, without holding all of them.

    Follows links as sources do: to class folders, and to files.
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
