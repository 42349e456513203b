"""Write predictions in parts, each atomically, and join them into one file.

During a prediction, the folder `OUTPUT.parts` holds the finished parts and a manifest of what they
were made with. A process that is killed loses the rows of at most one part; the next process
computes them again.
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
import pyarrow.csv
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.config.prediction import OutputFormat
from mask_ray.data.sources import shown

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
        if not path.exists():
            with _clear_errors(path):
                _write_atomically(
                    path, lambda file: file.write_text(json.dumps(made_with, indent=2))
                )
            return
        stored = json.loads(path.read_text())
        for name, value in made_with.items():
            if value != stored.get(name):
                before, now = (shown(str(each)) for each in (stored.get(name), value))
                raise OutputError(
                    f"{self._output} was started with {name} {before}; got {now}. Use the same "
                    f"{name}, use another output, or remove {self._folder}"
                )

    def _done(self) -> NDArray[np.bytes_]:
        paths = self._paths()
        self._num_written = 1 + int(paths[-1].stem) if paths else 0
        done = [keys(pq.read_table(p, columns=["path"])["path"].to_pylist()) for p in paths]
        return np.sort(np.concatenate([np.empty(0, _KEY), *done]))

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def write(self, rows: pa.Table) -> None:
        """Add a part.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self._folder / f"{self._num_written:08d}.parquet"
        with _clear_errors(path):
            _write_atomically(path, lambda file: pq.write_table(rows, file))
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

        def join(file: Path) -> None:
            with write(str(file), self.schema) as writer:
                for part in map(pq.read_table, self._paths()):
                    counts.update(label or "" for label in part["label"].to_pylist())
                    writer.write_table(part)

        with _clear_errors(self._output):
            _write_atomically(self._output, join)
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


def _write_atomically(path: Path, write: Any) -> None:
    """Write atomically: the file gets its name once all of it is written."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    write(unfinished)
    unfinished.replace(path)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
