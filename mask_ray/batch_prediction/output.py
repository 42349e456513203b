"""Write predictions in parts, each atomically, and join them into one file.

During a prediction, the folder `OUTPUT.parts` holds the finished parts and a manifest of what they
were made with. A process that is killed loses the rows of at most one part; the next process
computes them again. So it does with parts that cannot be read.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mask_ray import files
from mask_ray.config import MaskRayError, Uri
from mask_ray.config.prediction import OutputFormat
from mask_ray.files import FORMULA
from mask_ray.progress import say

_MANIFEST = "manifest.json"

# Twelve bytes in hex. The chance that any two of a billion paths collide is about 10^-11.
_KEY = "S24"


class OutputError(MaskRayError):
    """The output cannot be written, or belongs to another prediction."""


class Parts:
    """The finished parts of one output, by number.

    Args:
        output: File that the parts are joined into.
        schema: Schema of the rows; its first column is `path`.
    """

    def __init__(self, output: Path, schema: pa.Schema) -> None:
        self._output = output
        self.schema = schema
        self._folder = output.with_name(f"{output.name}.parts")
        self._num_written = 0

    @contextmanager
    def opened(self, made_with: dict[str, Any]) -> Iterator[NDArray[np.bytes_]]:
        """Lock the folder, and yield the sorted keys (see `keys`) of finished files.

        Args:
            made_with: All that the rows depend on, as JSON values.

        Raises:
            OutputError: the output exists already, another process is writing it, or its parts
                were made with something else.
        """
        if self._output.exists() and not self._folder.exists():
            raise OutputError(f"output must not exist yet, or be removed first; got {self._output}")
        with _clear_errors(self._output):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._folder / "lock", timeout=0):
                self._check_manifest(made_with)
                yield self._done()
        except Timeout as error:
            raise OutputError(f"another process is writing {self._output}") from error

    def _check_manifest(self, made_with: dict[str, Any]) -> None:
        path = self._folder / _MANIFEST
        stored = _read_manifest(path)
        if stored is None:
            # Nothing says what these were made with.
            for part in self._paths():
                self._drop(part, f"{path} is missing or cannot be read")
            with _clear_errors(path):
                files.write_text(path, json.dumps(made_with, indent=2), mode=files.PRIVATE_FILE)
            return
        for name, value in made_with.items():
            before, now = stored.get(name), value
            if name == "source":
                # An earlier version stored URIs with their secrets.
                before, now = str(Uri(str(before))), str(Uri(str(now)))
            if before != now:
                raise OutputError(
                    f"{self._output} was started with {name} {before}; got {now}. Use the same "
                    f"{name}, use another output, or remove {self._folder}"
                )

    def _done(self) -> NDArray[np.bytes_]:
        done = [np.empty(0, _KEY)]
        for path in self._paths():
            part = self._read(path)
            if part is not None:
                done.append(keys(part["path"].to_pylist()))
        paths = self._paths()
        self._num_written = 1 + int(paths[-1].stem) if paths else 0
        return np.sort(np.concatenate(done))

    def _read(self, path: Path) -> pa.Table | None:
        """Read a whole part; delete it and return None if it is damaged."""
        try:
            part = _read_part(path)
        except (OSError, pa.ArrowException) as error:
            self._drop(path, str(error).partition("\n")[0])
            return None
        if not part.schema.equals(self.schema):
            self._drop(path, "its columns are others")
            return None
        return part

    def _drop(self, path: Path, reason: str) -> None:
        say(f"{path.name} is dropped, and its images are classified again: {reason}")
        with _clear_errors(path):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def write(self, rows: pa.Table) -> None:
        """Add a part.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self._folder / f"{self._num_written:08d}.parquet"
        with _clear_errors(path):
            _write_part(rows, path)
        self._num_written += 1

    def join(self, file_format: OutputFormat) -> Counter[str]:
        """Join the parts into the output, and delete them.

        Returns:
            Number of rows by label; an empty label counts rows without one.

        Raises:
            OutputError: the file cannot be written.
        """
        counts: Counter[str] = Counter()
        write = {"parquet": pq.ParquetWriter, "csv": pa.csv.CSVWriter}[file_format]

        with (
            _clear_errors(self._output),
            files.appearing_file(self._output) as unfinished,
            write(str(unfinished), self.schema) as writer,
        ):
            for part in map(_read_part, self._paths()):
                counts.update(label or "" for label in part["label"].to_pylist())
                writer.write_table(_safe_for_spreadsheets(part) if file_format == "csv" else part)
        with _clear_errors(self._folder):
            shutil.rmtree(self._folder)
        return counts


def keys(paths: Iterable[str]) -> NDArray[np.bytes_]:
    """Hash paths to keys of 24 bytes each, shape (N,)."""
    digests = (hashlib.blake2b(path.encode(), digest_size=12).hexdigest() for path in paths)
    return np.array(list(digests), _KEY)


def is_among(paths: Iterable[str], done: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Return which of the paths are finished, given the sorted keys of finished ones."""
    wanted = keys(paths)
    if not len(done):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(done, wanted), len(done) - 1)
    return done[places] == wanted


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest; None if there is none, or none that can be read."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _write_part(rows: pa.Table, path: Path) -> None:
    with files.appearing_file(path) as unfinished:
        pq.write_table(rows, unfinished, write_page_checksum=True)


def _read_part(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True)


def _safe_for_spreadsheets(rows: pa.Table) -> pa.Table:
    """Put an apostrophe before texts that a spreadsheet would take for a formula."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_string(field.type):
            text = rows[field.name]
            is_formula = pc.match_substring_regex(text, f"^{FORMULA.pattern}")
            safe = pc.if_else(is_formula, pc.binary_join_element_wise("'", text, ""), text)
            rows = rows.set_column(index, field, safe)
    return rows


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
