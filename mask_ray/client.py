"""Classify files by a running endpoint: `python -m mask_ray.client FILES_OR_FOLDERS`.

One request and one row for each file, a few at a time, in the order given; what fails has its
error in its row. Rows go to standard output or a file, all else to standard error. Nothing of Ray
is imported here.

Exit code 0: all classified; 1: some failed; 2: wrong usage; 130: stopped, and what was done is
written.
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
from typing import Annotated, Literal, Protocol, TextIO

import httpx
from pydantic import BaseModel, Field, PlainValidator, ValidationError, field_validator
from pydantic_settings import CliPositionalArg
from rich import progress
from rich.console import Console

from mask_ray import cli
from mask_ray.config import IMAGE_FORMATS, MaskRayError, Settings

TOKEN_VARIABLE = "MASK_RAY_TOKEN"
IMAGE_SUFFIXES = sorted(suffix for each in IMAGE_FORMATS for suffix in each.suffixes)

# Busy, a replica gone in mid-answer, none ready, one that hangs. To classify twice does no harm.
_RETRIED_STATUSES = (429, 502, 503, 504)
_RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError)
_MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 0.25


def _check_name(name: str) -> str:
    if not name:
        raise ValueError("must name a file or a folder; got an empty string")
    return name


# Not pydantic's own check of strings, which refuses names of files that are not UTF-8.
Name = Annotated[str, PlainValidator(_check_name)]


class ClientSettings(Settings):
    """Classify image files by a running endpoint, and write one row for each file.

    Folders stand for all images in them and in folders below. A token is read from the environment
    variable MASK_RAY_TOKEN, or from a file.
    """

    paths: CliPositionalArg[list[Name]] = Field(
        min_length=1, description="Image files, and folders of them."
    )
    url: str = Field("http://127.0.0.1:8000", description="Where the endpoint is.")
    output: Path | None = Field(
        None, description="File for the rows, which is replaced (default: standard output)."
    )
    format: Literal["auto", "csv", "json"] = Field(
        "auto",
        description="csv, or json with one object a line. auto: json if the output ends in .json "
        "or .jsonl, else csv.",
    )
    concurrency: int = Field(8, ge=1, le=256, description="Requests at a time.")
    timeout_s: float = Field(30, gt=0, description="Longest wait for one answer, in seconds.")
    retries: int = Field(
        8,
        ge=0,
        le=100,
        description="How often a file is sent again when the server is busy or not reached; after "
        "as long as its Retry-After says, at most 60 s.",
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="Probability below which the label is uncertain."
    )
    token_file: Path | None = Field(
        None, description="File that holds the bearer token, instead of MASK_RAY_TOKEN."
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not re.match(r"https?://[^/]", url):
            raise ValueError(f"must begin with http:// or https://; got {url}")
        return url.rstrip("/").removesuffix("/predict")

    @property
    def is_json(self) -> bool:
        """Whether rows are written as JSON."""
        if self.format != "auto":
            return self.format == "json"
        return self.output is not None and self.output.suffix in (".json", ".jsonl")


@dataclass(frozen=True)
class Row:
    """What is known of a file: its class, or why there is none."""

    path: str
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    version: str | None = None
    error: str | None = None


class _NotClassifiedError(Exception):
    """A file was not classified; the message says why."""


class _Model(BaseModel):
    name: str
    version: str | None = None


class _Prediction(BaseModel):
    label: str
    probability: float
    probabilities: dict[str, float]
    model: _Model


def main() -> None:
    """Parse the command line, classify, exit."""
    settings = cli.parse(ClientSettings, sys.argv[1:])
    try:
        num_failed = run(settings)
    except MaskRayError as error:
        cli.fail(str(error), exit_code=2)
    except BrokenPipeError:
        # The reader has seen enough, as `head` does.
        raise SystemExit(1) from None
    except OSError as error:
        cli.fail(f"output cannot be written: {error}", exit_code=1)
    except KeyboardInterrupt:
        cli.fail("stopped", exit_code=130)
    raise SystemExit(1 if num_failed else 0)


def run(settings: ClientSettings) -> int:
    """Classify all files and write their rows; how many failed.

    Raises:
        MaskRayError: the token or the output cannot be used.
        OSError: the output can no longer be written.
    """
    token = read_token(settings.token_file)
    paths = list_files(settings.paths)
    began = time.perf_counter()
    with _opened(settings.output) as stream, _bar(len(paths), settings) as advance:
        rows = _OrderedRows(JSONWriter(stream) if settings.is_json else CSVWriter(stream), advance)
        try:
            asyncio.run(_classify_all(settings, token, paths, rows))
        finally:
            rows.write_the_rest()
    _say_summary(len(paths), rows.num_failed, time.perf_counter() - began)
    return rows.num_failed


def read_token(token_file: Path | None) -> str | None:
    """The bearer token, if there is one. Never from the command line, which `ps` shows to all.

    Raises:
        MaskRayError: the file cannot be read, or no HTTP header can carry the token.
    """
    source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
    if token_file is not None:
        source = f"token_file {token_file}"
        try:
            token = token_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise MaskRayError(f"token_file must be a readable file: {error}") from error
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token) or (token_file is not None and not token):
        raise MaskRayError(f"{source} must hold one token of ASCII characters without spaces")
    return token or None


def list_files(paths: list[str]) -> list[str]:
    """Files as given; for a folder, its images in the order of their names.

    A folder without any stands for itself, so that it has a row that says so.
    """
    return [file for path in paths for file in (_images_below(path) or [path])]


def _images_below(path: str) -> list[str]:
    folder = Path(path)
    return sorted(
        str(file)
        for file in folder.rglob("*")
        # A dot begins what systems keep of their own, such as ._photo.jpg.
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


async def _classify_all(
    settings: ClientSettings, token: str | None, paths: list[str], rows: "_OrderedRows"
) -> None:
    numbered = enumerate(paths)
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {token}"} if token else {},
        limits=httpx.Limits(max_connections=settings.concurrency),
        timeout=None,  # the endpoint's own, over the whole of a request
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
    """Where files are sent, again and again while it is busy."""

    def __init__(self, http: httpx.AsyncClient, settings: ClientSettings) -> None:
        self._http = http
        self._settings = settings
        self._query = {} if settings.threshold is None else {"threshold": settings.threshold}
        # Once a file has waited in vain for a server, the others do not.
        self._is_gone = False

    async def classify(self, path: str) -> Row:
        """The row of a file, whatever happens to it."""
        try:
            encoded = await asyncio.to_thread(Path(path).read_bytes)
            predicted = _Prediction.model_validate_json((await self._answer(encoded)).content)
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

    async def _answer(self, encoded: bytes) -> httpx.Response:
        """The first answer that is not a request to come back later.

        Raises:
            _NotClassifiedError: it is an error, or there was none.
        """
        for attempt in count():
            try:
                response = await self._send(encoded)
            except _RETRIED_ERRORS as error:
                reason, asked_s = f"the server is not reached: {_reason(error)}", None
                is_last = attempt >= self._settings.retries or self._is_gone
                self._is_gone = is_last
            else:
                self._is_gone = False
                if response.is_success:
                    return response
                reason, asked_s = _detail(response), _retry_after_s(response)
                is_last = attempt >= self._settings.retries
                is_last |= response.status_code not in _RETRIED_STATUSES
            if is_last or (asked_s or 0) > _MAX_WAIT_S:
                raise _NotClassifiedError(reason)
            await asyncio.sleep(_wait_s(attempt, asked_s))
        raise AssertionError("not reached")

    async def _send(self, encoded: bytes) -> httpx.Response:
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
    """What a problem (RFC 9457) says, or else the status alone."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        detail = response.json()["detail"]
    except (ValueError, LookupError, TypeError):
        return status
    return f"{status}: {detail}"


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds from now, from either form of RFC 9110, section 10.2.3."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0)
    except (ValueError, TypeError):
        return None


def _wait_s(attempt: int, asked_s: float | None) -> float:
    """How long to wait: as asked and a little more, or else twice as long each time.

    Drawn at random, so that clients that were refused together do not return together.
    """
    if asked_s is not None:
        return asked_s + random.uniform(0, max(asked_s / 4, _FIRST_WAIT_S))
    return random.uniform(0.5, 1) * min(_FIRST_WAIT_S * 2**attempt, _MAX_WAIT_S)


class _Writer(Protocol):
    def write(self, row: Row) -> None: ...


class CSVWriter:
    """A line of names, then one for each row; `probabilities` is a JSON object."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._csv = csv.writer(stream, lineterminator="\n")
        self._csv.writerow([column.name for column in fields(Row)])
        stream.flush()

    def write(self, row: Row) -> None:
        """Write it through to the file, or the pipe."""
        values = asdict(row)
        values["probabilities"] = json.dumps(row.probabilities) if row.probabilities else None
        self._csv.writerow(values.values())
        self._stream.flush()


class JSONWriter:
    """One object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: Row) -> None:
        """Write it through to the file, or the pipe."""
        self._stream.write(json.dumps(asdict(row)) + "\n")
        self._stream.flush()


class _OrderedRows:
    """Takes rows as they are done, and writes them in the order of their numbers, from 0."""

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

    def write_the_rest(self) -> None:
        """For an early end: rows that wait for one that will not come."""
        while self._waiting:
            self._writer.write(self._waiting.pop(min(self._waiting)))


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The output. Names of files that are not UTF-8 are written as they are."""
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
        raise MaskRayError(f"output must be a file that can be written: {error}") from error
    with stream:
        yield stream


@contextmanager
def _bar(num_files: int, settings: ClientSettings) -> Iterator[Callable[[], None]]:
    """A progress bar, where a person sees it and rows do not run through it."""
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


def _say_summary(num_files: int, num_failed: int, elapsed_s: float) -> None:
    print(
        f"{num_files} files: {num_files - num_failed} classified, {num_failed} failed, "
        f"{elapsed_s:.1f} s, {num_files / elapsed_s:.1f} files/s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
