"""The list of a data set's files holds every row, however many there are, and bad files too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mask_ray import data, file_list
from mask_ray.file_list import FileList

DIGESTS = ["a" * 64, "b" * 64, "c" * 64]


class InMemory:
    """The rows of a decoded Ray Dataset, batch by batch."""

    def select_columns(self, columns: list[str]) -> "InMemory":
        return self

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        yield {
            "path": np.array(["1.jpg", "2.jpg", "3.jpg"]),
            "digest": np.array(DIGESTS),
            "split": np.array(["train", "val", "test"]),
            "label": np.array([0, 1, 0]),
            "error": np.array(["", "", "not an image"]),
        }


def test_the_summary_of_a_data_set_lists_what_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "files.parquet"
    listed = data.summarise(InMemory(), ["cat", "dog"], 3, file)

    assert listed == data.summarise(InMemory(), ["cat", "dog"], 3)
    assert pq.read_table(file).to_pydict() == {
        "path": ["1.jpg", "2.jpg", "3.jpg"],
        "digest": DIGESTS,
        "split": ["train", "val", "test"],
        "label": ["cat", "dog", "cat"],
        "error": ["", "", "not an image"],
    }


@pytest.mark.parametrize("num_files", [0, 1, 4, 5])
def test_rows_are_written_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    monkeypatch.setattr(file_list, "_ROWS_TOGETHER", 2)
    file = tmp_path / "files.parquet"
    with FileList(file) as listed:
        for number in range(num_files):
            listed.add(f"{number}.jpg", "d", "train", "cat", "")

    written = pq.ParquetFile(file)
    assert written.read()["path"].to_pylist() == [f"{n}.jpg" for n in range(num_files)]
    assert written.num_row_groups == -(-num_files // 2)
