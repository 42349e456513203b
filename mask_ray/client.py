"""Classify files with a running endpoint: `python -m mask_ray.client FILES_OR_FOLDERS`.

Sends one request for each file, several at a time, and writes one row for each, in the order of
the arguments. The row of a file that failed holds the error. Rows go to standard output or a
file, everything else to standard error. Ray is not imported.

Exit code 0: all files classified; 1: some failed; 2: wrong usage; 130: interrupted, with finished
rows written.
"""

import asyncio
import csv
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Protocol, TextIO

import httpx
from pydantic import BaseModel, ValidationError
from rich import progress
from rich.console import Console

from mask_ray import cli, proxies
from mask_ray.config import MaskRayError
from mask_ray.config.client import TOKEN_VARIABLE, ClientSettings
from mask_ray.files import safe_cell
from mask_ray.images.folders import IMAGE_SUFFIXES, Skipped, images_below

# Busy; a replica lost in mid-answer; no replica ready; a replica that hangs. What the service
# refuses or gives up for the file itself has another status, such as 413 or 422.
_RETRIED_STATUSES = (429, 502, 503, 504)
# A replica that hangs may hang because of the file, and each attempt may cost the service another.
_MAX_LATE_ANSWERS = 2
_RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError)
_MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 0.25


@dataclass(frozen=True)
class Row:
    """The result for one file: a prediction, or an error."""

    path: str
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    version: str | None = None
    error: str | None = None


class _NotClassifiedError(Exception):
    """A file could not be classified; the message says why."""


class _Model(BaseModel):
    name: str
    version: str | None = None


class _Prediction(BaseModel):
    label: str
    probability: float
    probabilities: dict[str, float]
    model: _Model


def main() -> None:
    """Run the command line and exit."""
    settings = cli.parse(ClientSettings, sys.argv[1:])
    try:
        num_failed = run(settings)
    except MaskRayError as error:
        cli.fail(str(error), exit_code=2)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does.
        raise SystemExit(1) from None
    except OSError as error:
        cli.fail(f"output cannot be written: {error}", exit_code=1)
    except KeyboardInterrupt:
        cli.fail("stopped", exit_code=cli.INTERRUPTED)
    raise SystemExit(1 if num_failed else 0)


def run(settings: ClientSettings) -> int:
    """Classify all files and write their rows.

    Returns the number of files that failed.

    Raises:
        MaskRayError: the token, the URL's proxy or the output is unusable.
        OSError: writing to the output failed.
    """
    token = read_token(settings.token_file)
    proxies.proxy_for(settings.url)  # an error before any file is opened
    paths = list_files(settings.paths)
    began = time.perf_counter()
    with _open_output(settings.output) as stream, _progress_bar(len(paths), settings) as advance:
        rows = _OrderedRows(JSONWriter(stream) if settings.is_json else CSVWriter(stream), advance)
        try:
            asyncio.run(_classify_all(settings, token, paths, rows))
        finally:
            rows.flush()
    _print_summary(len(paths), rows.num_failed, time.perf_counter() - began)
    return rows.num_failed


def read_token(token_file: Path | None) -> str | None:
    """Read the bearer token, if there is one, from the file or the environment.

    It is not a flag, because `ps` shows command lines to every user.

    Raises:
        MaskRayError: the file cannot be read, or the token is not valid in an HTTP header.
    """
    source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
    if token_file is not None:
        source = f"token_file {token_file}"
        try:
            token = token_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise MaskRayError(f"--token-file must be a readable file: {error}") from error
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token) or (token_file is not None and not token):
        raise MaskRayError(f"{source} must hold one token of ASCII characters without spaces")
    return token or None


def list_files(paths: list[str]) -> list[str]:
    """Replace each folder by the images in and below it, sorted by path.

    A folder without images stays in the list, so that its row can say so. What folders hold beside
    images is counted and named on standard error.
    """
    skipped = Skipped()
    below = [images_below(path, skipped) if Path(path).is_dir() else [] for path in paths]
    files = [file for path, found in zip(paths, below, strict=True) for file in found or [path]]
    for line in skipped.describe():
        print(line, file=sys.stderr)
    return files


async def _classify_all(
    settings: ClientSettings, token: str | None, paths: list[str], rows: "_OrderedRows"
) -> None:
    numbered = enumerate(paths)
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {token}"} if token else {},
        transport=proxies.async_transport(settings.url, settings.concurrency),
        timeout=None,  # `_Endpoint` limits the request as a whole
    ) as http:
        endpoint = _Endpoint(http, settings)

        async def work() -> None:
            for number, path in numbered:
                rows.add(number, await endpoint.classify(path))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(settings.concurrency):
                    group.create_task(work())
        except* OSError as errors:
            raise errors.exceptions[0] from None


class _Endpoint:
    """Sends files to the endpoint, and retries while it is busy or unreachable."""

    def __init__(self, http: httpx.AsyncClient, settings: ClientSettings) -> None:
        self._http = http
        self._settings = settings
        self._query = {} if settings.threshold is None else {"threshold": settings.threshold}
        # Set when a file has used up its retries; the others then get one attempt each.
        self._is_unreachable = False
        self._has_told_of_retries = False

    async def classify(self, path: str) -> Row:
        """Send a file. Returns its row, with the error if it failed."""
        try:
            encoded = await asyncio.to_thread(Path(path).read_bytes)
            response = await self._post_with_retries(encoded)
            predicted = _Prediction.model_validate_json(response.content)
        except IsADirectoryError:
            return Row(path, error=f"folder without images: {', '.join(IMAGE_SUFFIXES)}")
        except OSError as error:
            return Row(path, error=error.strerror or str(error))
        except _NotClassifiedError as error:
            return Row(path, error=str(error))
        except ValidationError:
            return Row(path, error="the answer is not a prediction; is the url right?")
        probabilities, model = predicted.probabilities, predicted.model
        return Row(
            path, predicted.label, predicted.probability, probabilities, model.name, model.version
        )

    async def _post_with_retries(self, encoded: bytes) -> httpx.Response:
        """Post an image until an answer is final, or retries are used up.

        Raises:
            _NotClassifiedError: the last answer is an error, or the server is unreachable.
        """
        num_late = 0
        for attempt in count():
            try:
                response = await self._post(encoded)
            except _RETRIED_ERRORS as error:
                reason, retry_after_s = f"the server is not reached: {_reason(error)}", None
                is_last = attempt >= self._settings.retries or self._is_unreachable
                if not is_last and not self._has_told_of_retries:
                    self._has_told_of_retries = True
                    tries = f"up to {self._settings.retries} more times (--retries)"
                    print(f"{self._settings.url}: {reason}; trying {tries}", file=sys.stderr)
                self._is_unreachable = is_last
            else:
                self._is_unreachable = False
                if response.is_success:
                    return response
                reason, retry_after_s = _detail(response), _retry_after_s(response)
                is_last = attempt >= self._settings.retries
                is_last |= response.status_code not in _RETRIED_STATUSES
                num_late += response.status_code == 504
                is_last |= num_late == _MAX_LATE_ANSWERS
            if is_last or (retry_after_s or 0) > _MAX_WAIT_S:
                raise _NotClassifiedError(reason)
            await asyncio.sleep(_wait_s(attempt, retry_after_s))
        raise AssertionError("not reached")

    async def _post(self, encoded: bytes) -> httpx.Response:
        timeout_s = self._settings.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._http.post(
                    f"{self._settings.url}/predict",
                    content=encoded,
                    params=self._query,
                    headers={"Content-Type": "application/octet-stream"},
                )
        except TimeoutError:
            raise _NotClassifiedError(f"no answer within {timeout_s:g} s") from None
        except _RETRIED_ERRORS:
            raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NotClassifiedError(_reason(error)) from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _detail(response: httpx.Response) -> str:
    """The status, and the detail if the body is a problem (RFC 9457)."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        detail = response.json()["detail"]
    except (ValueError, LookupError, TypeError):
        return status
    return f"{status}: {detail}"


def _retry_after_s(response: httpx.Response) -> float | None:
    """Parse Retry-After, in seconds or as a date (RFC 9110, section 10.2.3). None: not valid."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0)
    except (ValueError, TypeError):
        return None


def _wait_s(attempt: int, retry_after_s: float | None) -> float:
    """Wait as long as Retry-After and up to a quarter more, or by exponential backoff.

    Random, so that requests that were rejected together do not come back together.
    """
    if retry_after_s is not None:
        return retry_after_s + random.uniform(0, max(retry_after_s / 4, _FIRST_WAIT_S))
    return random.uniform(0.5, 1) * min(_FIRST_WAIT_S * 2**attempt, _MAX_WAIT_S)


class _Writer(Protocol):
    def write(self, row: Row) -> None: ...


class CSVWriter:
    """Writes a header line, then a line for each row; `probabilities` is a JSON object.

    Texts that a spreadsheet would take for formulas begin with an apostrophe.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._csv = csv.writer(stream, lineterminator="\n")
        self._csv.writerow([column.name for column in fields(Row)])
        stream.flush()

    def write(self, row: Row) -> None:
        """Write a row and flush it."""
        values = asdict(row)
        values["probabilities"] = json.dumps(row.probabilities) if row.probabilities else None
        self._csv.writerow([safe_cell(v) if isinstance(v, str) else v for v in values.values()])
        self._stream.flush()


class JSONWriter:
    """Writes one object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: Row) -> None:
        """Write a row and flush it."""
        self._stream.write(json.dumps(asdict(row)) + "\n")
        self._stream.flush()


class _OrderedRows:
    """Takes rows in any order, and writes them in the order of their numbers, from 0."""

    def __init__(self, writer: _Writer, advance: Callable[[], None]) -> None:
        self._writer = writer
        self._advance = advance
        self._waiting: dict[int, Row] = {}
        self._next = 0
        self.num_failed = 0

    def add(self, number: int, row: Row) -> None:
        self._waiting[number] = row
        self.num_failed += row.error is not None
        self._advance()
        while self._next in self._waiting:
            row = self._waiting.pop(self._next)
            self._next += 1
            self._writer.write(row)

    def flush(self) -> None:
        """After an interrupt: write rows that still wait for an earlier one."""
        while self._waiting:
            self._writer.write(self._waiting.pop(min(self._waiting)))


@contextmanager
def _open_output(output: Path | None) -> Iterator[TextIO]:
    """Open the output. File names that are not UTF-8 are written byte by byte."""
    target = sys.stdout.fileno() if output is None else output
    try:
        stream = open(  # noqa: SIM115
            target,
            "w",
            encoding="utf-8",
            errors="surrogateescape",
            newline="",
            closefd=output is not None,
        )
    except OSError as error:
        raise MaskRayError(f"--output must be a file that can be written: {error}") from error
    with stream:
        yield stream


@contextmanager
def _progress_bar(num_files: int, settings: ClientSettings) -> Iterator[Callable[[], None]]:
    """Show a progress bar, if standard error is a terminal that rows are not written to."""
    if not sys.stderr.isatty() or (settings.output is None and sys.stdout.isatty()):
        yield lambda: None
        return
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("files"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("", total=num_files)
        yield lambda: bar.advance(task)


def _print_summary(num_files: int, num_failed: int, elapsed_s: float) -> None:
    print(
        f"{num_files} files: {num_files - num_failed} classified, {num_failed} failed, "
        f"{elapsed_s:.1f} s, {num_files / elapsed_s:.1f} files/s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
