"""The list of a data set's files holds every row, however many there are, and bad files too."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mask_ray.data.file_list import open_file_list

SPLITS = ("train", "val", "test", "left out")


def batch(*rows: tuple[str, int, str]) -> dict[str, np.ndarray]:
    """Of paths, labels and errors."""
    paths, labels, errors = (list(column) for column in zip(*rows, strict=True))
    return {
        "path": np.array(paths),
        "digest": np.array([f"digest of {path}" for path in paths]),
        "label": np.array(labels),
        "error": np.array(errors),
        "signature": np.zeros((len(paths), 4), np.uint8),
    }


def test_every_readable_file_is_listed_with_its_split_and_every_other_with_its_error(
    tmp_path: Path,
) -> None:
    file = tmp_path / "files.parquet"
    with open_file_list(file, ["cat", "dog"]) as listed:
        assert listed is not None
        listed.add(batch(("1.jpg", 0, ""), ("2.txt", 1, "not an image")))
        listed.add(batch(("3.jpg", 1, ""), ("4.jpg", 0, "")))
        listed.finish(SPLITS, np.array([2, 0, 3], np.int8))

    assert pq.read_table(file).to_pydict() == {
        "path": ["1.jpg", "2.txt", "3.jpg", "4.jpg"],
        "digest": [f"digest of {path}" for path in ("1.jpg", "2.txt", "3.jpg", "4.jpg")],
        "label": ["cat", "dog", "dog", "cat"],
        "error": ["", "not an image", "", ""],
        "split": ["test", "", "train", "left out"],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["files.parquet"]


def test_no_file_is_a_list_too(tmp_path: Path) -> None:
    file = tmp_path / "files.parquet"
    with open_file_list(file, ["cat", "dog"]) as listed:
        assert listed is not None
        listed.finish(SPLITS, np.zeros(0, np.int8))
    assert pq.read_table(file).num_rows == 0


def test_what_is_cut_off_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "files.parquet"
    with pytest.raises(KeyboardInterrupt), open_file_list(file, ["cat"]) as listed:
        assert listed is not None
        listed.add(batch(("1.jpg", 0, "")))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_there_is_no_list() -> None:
    with open_file_list(None, ["cat"]) as listed:
        assert listed is None
