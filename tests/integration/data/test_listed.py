"""The test split of a run is read again from its list of files, at any size."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data.listed import read_listed
from mask_ray.evaluation import grounds

pytestmark = pytest.mark.usefixtures("ray_local")


def test_the_test_split_is_read_again_as_it_was(tmp_path: Path) -> None:
    settings = DataSettings(data="synthetic:60")
    images = data.load(settings, 96, file_list=tmp_path / "files.parquet")
    listed = pq.read_table(tmp_path / "files.parquet").to_pandas()
    tested = pq.read_table(tmp_path / "files.parquet", filters=[("split", "=", "test")])
    assert len(tested) == (listed["split"] == "test").sum() > 0

    again = read_listed(tested, images.class_names, 96, settings).take_all()

    first = {row["digest"]: row for row in images.identified("test").take_all()}
    assert {row["error"] for row in again} == {""}
    assert {row["digest"] for row in again} == set(first)
    for row in again:
        np.testing.assert_array_equal(row["image"], first[row["digest"]]["image"])
        assert row["label"] == first[row["digest"]]["label"]


def test_a_reference_set_has_the_images_of_all_splits() -> None:
    images = grounds.load_reference("synthetic:40", DataSettings(data="synthetic"), 96)
    assert images.at_size(96).count() == 40
    assert images.at_size(128).take(1)[0]["image"].shape == (128, 128, 3)
