"""What is checked of a data set without Ray: its folders, and the shares of its splits."""

from pathlib import Path

import pytest

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import sources


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        data.DataError, match=r"nothing at .*/nowhere\. A submitted job .* absolute path"
    ):
        sources.check(str(tmp_path / "nowhere"))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "with_mask").mkdir()
    (tmp_path / ".cache").mkdir()
    with pytest.raises(data.DataError, match=r"at least 2 .* holds 1: with_mask"):
        sources.check(str(tmp_path))


def test_split_shares_are_those_asked_for() -> None:
    settings = DataSettings(data="synthetic", val_fraction=0.3, test_fraction=0.1)
    digests = (data.digest_of(str(n).encode()) for n in range(20_000))
    splits = [data.split_of(digest, settings) for digest in digests]
    shares = {name: splits.count(name) / len(splits) for name in data.SPLITS}
    assert shares == pytest.approx({"train": 0.6, "val": 0.3, "test": 0.1}, abs=0.01)
