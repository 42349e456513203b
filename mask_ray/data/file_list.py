"""Write the list of a data set's files to a compact file, while they are read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# Name of the list among the artifacts of a run.
FILE_LIST = "files.parquet"

_READ = pa.schema([(name, pa.string()) for name in ("path", "digest", "label", "error")])
_LISTED = _READ.append(pa.field("split", pa.string()))


class FileList:
    """Writes rows `path`, `digest`, `label` (class name), `error` and `split` to a Parquet file.

    The split of an image depends on all images, so rows are first written without it, to a file
    beside the final one. `open_file_list` makes it.

    Args:
        file: The final file.
        unsplit: The file beside it.
        writer: Writes to `unsplit`.
        class_names: Class names, in the order of labels.
    """

    def __init__(
        self, file: Path, unsplit: Path, writer: pq.ParquetWriter, class_names: Sequence[str]
    ) -> None:
        self._file = file
        self._unsplit = unsplit
        self._writer = writer
        self._class_names = np.array(class_names, dtype=object)

    def add(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Add a batch. `label` is an index; `error` is empty if the file is readable."""
        columns = {**batch, "label": self._class_names[batch["label"]]}
        arrays = [pa.array(columns[name].astype(object), pa.string()) for name in _READ.names]
        self._writer.write_table(pa.table(arrays, schema=_READ))

    def finish(self, splits: Sequence[str], indices: NDArray[np.int8]) -> None:
        """Write the final file.

        Args:
            splits: Names of the splits.
            indices: Index of the split of each readable row, in order. Other rows have none.
        """
        self._writer.close()
        names, at = np.array(splits, dtype=object), 0
        with (
            pq.ParquetFile(self._unsplit) as rows,
            pq.ParquetWriter(self._file, _LISTED, compression="zstd") as writer,
        ):
            for batch in rows.iter_batches():
                readable = np.asarray(batch["error"]) == ""
                split = np.full(len(readable), "", dtype=object)
                split[readable] = names[indices[at : at + readable.sum()]]
                at += int(readable.sum())
                columns = [*batch.columns, pa.array(split, pa.string())]
                writer.write_table(pa.table(columns, schema=_LISTED))


@contextmanager
def open_file_list(file: Path | None, class_names: Sequence[str]) -> Iterator[FileList | None]:
    """Open a list to `add` to and then `finish`; what is not finished leaves no file.

    Args:
        file: The file to write, whose folder must exist; None for no list.
        class_names: Class names, in the order of labels.
    """
    if file is None:
        yield None
        return
    unsplit = file.with_suffix(".part")
    try:
        with pq.ParquetWriter(unsplit, _READ, compression="zstd") as writer:
            yield FileList(file, unsplit, writer, class_names)
    finally:
        unsplit.unlink(missing_ok=True)
