"""Folders and drawn faces become checked, split, decoded Ray Datasets."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import dataset
from mask_ray.images import synthetic
from mask_ray.images.decode import decode_resized
from tests.support import image_files

IMAGE_SIZE = 32


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty drawn faces a class, in folders."""
    root = tmp_path / "photos"
    for index in range(120):
        encoded, class_name = synthetic.encode(index, image_size=48)
        path = root / class_name / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return root


def load(source: object, **settings: float) -> data.ImageData:
    return data.load(DataSettings(data=str(source), **settings), IMAGE_SIZE)


def paths_by_split(images: data.ImageData) -> dict[str, set[str]]:
    rows = images.decoded(data.SPLITS).select_columns(["path", "split"]).to_pandas()
    return {split: set(group["path"]) for split, group in rows.groupby("split")}


@pytest.mark.usefixtures("ray_local")
class TestLoad:
    def test_counts_every_image_once_in_its_class_and_split(self, photos: Path) -> None:
        images = load(photos)
        assert images.class_names == ["with_mask", "without_mask"]
        assert images.summary.num_images == 120
        for class_name in images.class_names:
            counts = {s: images.summary.counts[s][class_name] for s in data.SPLITS}
            assert sum(counts.values()) == 60
            assert counts["train"] > counts["val"] > 0 < counts["test"]

    def test_rows_are_the_decoded_pixels_and_the_folder_s_label(self, photos: Path) -> None:
        images = load(photos)
        (row,) = (r for r in images.decoded(data.SPLITS).take_all() if r["path"].endswith("/7.jpg"))
        expected, _ = synthetic.encode(7, image_size=48)
        assert row["label"] == images.class_names.index("without_mask")
        np.testing.assert_array_equal(row["image"], decode_resized(expected, IMAGE_SIZE))

    def test_of_images_that_are_too_many_to_keep_a_split_is_read_alone(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dataset, "KEPT_SHARE_OF_OBJECT_STORE", 0)
        images = load(photos)
        assert not images.kept
        rows = images.decoded(["val", "test"]).take_all()
        expected = {split: images.summary.counts[split].total() for split in ("val", "test")}
        assert Counter(row["split"] for row in rows) == expected
        assert images.split("val").count() == expected["val"]

    def test_a_split_holds_its_rows_and_no_others(self, photos: Path) -> None:
        images = load(photos)
        rows = images.split("val").take_all()
        assert len(rows) == images.summary.counts["val"].total()
        assert all(row["image"].shape == (IMAGE_SIZE, IMAGE_SIZE, 3) for row in rows)
        assert images.split("train", "val", "test").count() == 120

    def test_a_block_without_a_row_of_a_split_is_not_of_objects(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What Ray makes of an array without rows, with a warning.
        context = ray.data.DataContext.get_current()
        monkeypatch.setattr(context, "enable_fallback_to_arrow_object_ext_type", False)
        images = load(photos, val_fraction=0.04)
        val = images.split("val")
        assert val.count() == images.summary.counts["val"].total()
        blocks = ray.get(val.to_arrow_refs())
        assert {0} < {block.num_rows for block in blocks}

    def test_adding_files_moves_no_other_file(self, photos: Path) -> None:
        before = paths_by_split(load(photos))
        for index in range(120, 160):
            encoded, class_name = synthetic.encode(index, image_size=48)
            (photos / class_name / f"{index}.jpg").write_bytes(encoded)
        after = paths_by_split(load(photos))
        assert all(before[split] < after[split] for split in ("train", "val", "test"))

    def test_copies_of_a_file_share_a_split(self, photos: Path) -> None:
        for path in list((photos / "with_mask").iterdir()):
            shutil.copy(path, path.with_name(f"copy-{path.name}"))
        splits = paths_by_split(load(photos))
        for paths in splits.values():
            names = {Path(path).name for path in paths if "/with_mask/" in path}
            assert {f"copy-{name}" for name in names if not name.startswith("copy-")} <= names

    def test_the_digest_tells_contents_and_labels_but_not_names(self, photos: Path) -> None:
        original = load(photos).summary.digest
        (photos / "with_mask" / "0.jpg").rename(photos / "with_mask" / "renamed.jpeg")
        assert load(photos).summary.digest == original
        (photos / "with_mask" / "renamed.jpeg").rename(photos / "without_mask" / "0.jpg")
        assert load(photos).summary.digest != original

    def test_unreadable_files_are_left_out_and_named(self, photos: Path) -> None:
        digest = load(photos).summary.digest
        (photos / "with_mask" / "notes.txt").write_bytes(image_files.text())
        (photos / "without_mask" / "cut.jpg").write_bytes(image_files.truncated_jpeg())
        (photos / "without_mask" / "empty.jpg").touch()
        (photos / "without_mask" / ".hidden").write_text("no image, and nobody's business")
        images = load(photos)
        bad = {Path(path).name: reason for path, reason in images.summary.bad_files.items()}
        assert set(bad) == {"notes.txt", "cut.jpg", "empty.jpg"}
        assert all(bad.values())
        assert images.summary.digest == digest
        assert images.split("train", "val", "test").count() == 120
        assert "3 unreadable files" in images.summary.report()
        assert "cut.jpg" in images.summary.report()

    def test_a_set_too_large_to_keep_gives_the_same_rows(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = load(photos)
        monkeypatch.setattr(dataset, "KEPT_SHARE_OF_OBJECT_STORE", 0)
        streamed = load(photos)
        assert kept.kept and not streamed.kept
        assert streamed.summary == kept.summary
        sums = [
            sorted(int(row["image"].sum()) for row in images.split("train").take_all())
            for images in (kept, streamed)
        ]
        assert sums[0] == sums[1]

    def test_drawn_faces_need_no_files(self) -> None:
        images = load("synthetic:90")
        assert images.class_names == list(synthetic.CLASS_NAMES)
        assert images.summary.num_images == 90
        assert images.summary.digest == load("synthetic:90").summary.digest
        assert images.summary.digest != load("synthetic:90", seed=1).summary.digest


@pytest.mark.usefixtures("ray_local")
class TestRefusals:
    def test_only_unreadable_files(self, photos: Path) -> None:
        for path in photos.rglob("*.jpg"):
            path.write_bytes(image_files.text())
        with pytest.raises(data.DataError, match=r"no readable images; 120 unreadable files, such"):
            load(photos)

    def test_a_class_that_a_split_lacks(self, photos: Path) -> None:
        for path in sorted((photos / "with_mask").iterdir())[2:]:
            path.unlink()
        with pytest.raises(data.DataError, match=r"(val|test|train) has none of with_mask"):
            load(photos)

    def test_a_class_that_only_the_test_split_has(self, photos: Path) -> None:
        settings = DataSettings(data=str(photos))
        for path in (photos / "with_mask").iterdir():
            if data.split_of(data.digest_of(path.read_bytes()), settings) != "test":
                path.unlink()
        assert any((photos / "with_mask").iterdir())
        with pytest.raises(
            data.DataError, match=r"every class needs images in every split; train has none of with"
        ):
            load(photos)

    def test_empty_class_folders(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with pytest.raises(data.DataError, match=r"every class folder in .* is empty"):
            load(tmp_path)
