"""The list of a data set's files, as a compact file that is written as they are read."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema([(name, pa.string()) for name in ("path", "digest", "split", "label", "error")])
_ROWS_TOGETHER = 8192


class FileList:
    """Rows `path`, `digest`, `split`, `label` (a class's name) and `error`, in a Parquet file.

    Args:
        file: Where they go; None for nowhere.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._rows: list[tuple[str, ...]] = []
        self._stack = ExitStack()

    def __enter__(self) -> "FileList":
        if self._file is not None:
            writer = pq.ParquetWriter(self._file, _SCHEMA, compression="zstd")
            self._writer = self._stack.enter_context(writer)
        return self

    def add(self, path: str, digest: str, split: str, label: str, error: str) -> None:
        """Add a row."""
        if self._file is not None:
            self._rows.append((path, digest, split, label, error))
            if len(self._rows) == _ROWS_TOGETHER:
                self._flush()

    def _flush(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.table(columns, schema=_SCHEMA))
        self._rows.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rows and kind is None:
            self._flush()
        self._stack.close()
