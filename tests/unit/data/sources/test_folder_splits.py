"""Folders as people have them: of splits, of classes, and what systems put beside them."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mask_ray.data import sources
from mask_ray.data.sources import DataError
from mask_ray.data.sources.folder_splits import split_of_name
from mask_ray.images.folders import is_junk
from tests.support import photo_archives


def folder(root: Path, names: Iterable[str]) -> Path:
    return photo_archives.folder(root, dict.fromkeys(names, b"x"))


def listed(root: Path) -> set[tuple[str, str, str]]:
    """Path, class and given split of each file."""
    labelled = sources.list_labelled(str(root))
    return {
        (row["path"], labelled.class_names[row["label"]], row["given_split"])
        for row in labelled.files.to_pylist()
    }


def of_splits(*splits: str) -> list[str]:
    return [f"{split}/{name}/{number}.jpg" for split in splits for name in "ab" for number in "12"]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "Train", "TRAINING", "train_set", "Training Data", "train2017"), "train"),
        (("val", "Valid", "validation", "VALIDATION_SET", "dev", "valid-images"), "val"),
        (("test", "Testing", "test set", "Test_Images", "01_test", "test (1)"), "test"),
        (("with_mask", "contest", "trainer", "latest", "values", "set", "train car", ""), None),
    ],
)
def test_splits_are_known_in_any_usual_spelling(names: tuple[str, ...], split: str | None) -> None:
    assert {name: split_of_name(name) for name in names} == dict.fromkeys(names, split)


class TestFoldersOfSplits:
    @pytest.mark.parametrize(
        "spelled",
        [("train", "val", "test"), ("Train", "Validation", "Test"), ("TRAINING", "dev", "Testing")],
    )
    def test_give_the_splits(self, tmp_path: Path, spelled: tuple[str, str, str]) -> None:
        folder(tmp_path, of_splits(*spelled))
        expected = dict(zip(spelled, ("train", "val", "test"), strict=True))
        assert listed(tmp_path) == {
            (path, path.split("/")[1], expected[path.split("/")[0]]) for path in of_splits(*spelled)
        }
        assert sources.check(str(tmp_path)) == str(tmp_path)

    def test_give_them_in_an_archive_too(self, tmp_path: Path, home: Path) -> None:
        files = dict.fromkeys(of_splits("Train", "Test"), b"x")
        archive = tmp_path / "set.zip"
        archive.write_bytes(photo_archives.zip_bytes(files, top="set/"))
        assert {split for *_, split in listed(archive)} == {"train", "test"}

    def test_give_them_within_classes_too(self, tmp_path: Path) -> None:
        names = [f"{name}/{split}/1.jpg" for name in "ab" for split in ("Train", "Valid", "Test")]
        folder(tmp_path, names)
        assert {(label, split) for _, label, split in listed(tmp_path)} == {
            (label, split) for label in "ab" for split in ("train", "val", "test")
        }

    def test_one_alone_is_entered_and_gives_none(self, tmp_path: Path) -> None:
        folder(tmp_path, of_splits("train"))
        assert {(label, split) for _, label, split in listed(tmp_path)} == {("a", ""), ("b", "")}

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                [*of_splits("Train", "Test"), "extra/a/1.jpg"],
                r"splits by their names \(Test, Train\) beside others \(extra\)\. Move or rename",
            ),
            (["Train/1.jpg", "Test/1.jpg"], r"one folder for each class; Test, Train hold files"),
            (
                [*of_splits("train"), "test/1.jpg"],
                r"splits test, train, which must .* class; test hold files only\. Sort",
            ),
            (["a/train/1", "a/test/1", "b/train/1", "b/new/1"], r"\(test, train\) beside new\."),
            (["a/train/1", "a/test/1", "b/train/1", "b/1"], r"\(test, train\) beside files\."),
        ],
    )
    def test_beside_others_are_refused_by_name(
        self, tmp_path: Path, names: list[str], message: str
    ) -> None:
        with pytest.raises(DataError, match=message) as caught:
            listed(folder(tmp_path, names))
        assert "\n" not in str(caught.value)

    def test_a_class_may_have_the_name_of_a_split(self, tmp_path: Path) -> None:
        folder(tmp_path, ["bus/1.jpg", "car/1.jpg", "train/1.jpg"])
        assert {label for _, label, _ in listed(tmp_path)} == {"bus", "car", "train"}

    def test_unlabelled_folders_may_be_anything(self, tmp_path: Path) -> None:
        folder(tmp_path, ["Train/1.jpg", "Test/a/1.jpg", "extra/1.jpg"])
        files, _ = sources.open_images(str(tmp_path))
        assert files["path"].to_pylist() == ["Test/a/1.jpg", "Train/1.jpg", "extra/1.jpg"]


class TestWhatIsBesidePhotos:
    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        lines: list[str] = []
        monkeypatch.setattr("mask_ray.data.sources.open.say", lines.append)
        return lines

    def test_of_systems_is_left_out(self, tmp_path: Path, said: list[str]) -> None:
        junk = ["__MACOSX/a/1.jpg", "lost+found/1", "@eaDir/1.jpg/T.jpg", "a/@eaDir/1.jpg/T.jpg"]
        junk += ["a/Thumbs.db", "b/desktop.ini", "$RECYCLE.BIN/1.jpg", "a/.DS_Store", "#recycle/1"]
        folder(tmp_path, ["a/1.jpg", "b/2.jpg", *junk])
        assert {path for path, *_ in listed(tmp_path)} == {"a/1.jpg", "b/2.jpg"}
        assert said == []

    def test_that_is_a_link_is_counted_and_named(self, tmp_path: Path, said: list[str]) -> None:
        data, elsewhere = tmp_path / "data", folder(tmp_path / "elsewhere", ["3.jpg"])
        folder(data, ["a/1.jpg", "b/2.jpg", "notes.txt"])
        (data / "a" / "gone.jpg").symlink_to("nowhere.jpg")
        (data / "a" / "file.jpg").symlink_to(elsewhere / "3.jpg")
        (data / "b" / "batch2").symlink_to(elsewhere)
        (data / "c").symlink_to(elsewhere)
        assert {path for path, *_ in listed(data)} == {
            "a/1.jpg", "a/file.jpg", "b/2.jpg", "c/3.jpg",
        }  # fmt: skip
        assert said == [
            f"{data}: skipped links that lead nowhere: 1 (a/gone.jpg)",
            f"{data}: skipped linked folders: 1 (b/batch2); give their own paths to include them",
            f"{data}: skipped files outside the folders of classes: 1 (notes.txt)",
        ]

    def test_spaces_around_a_class_make_no_other(self, tmp_path: Path, said: list[str]) -> None:
        folder(tmp_path, ["cats/1.jpg", "cats /2.jpg", "dogs/3.jpg"])
        assert {(path, label) for path, label, _ in listed(tmp_path)} == {
            ("cats/1.jpg", "cats"), ("cats /2.jpg", "cats"), ("dogs/3.jpg", "dogs"),
        }  # fmt: skip

    def test_classes_that_differ_in_signs_alone_are_named(
        self, tmp_path: Path, said: list[str]
    ) -> None:
        listed(folder(tmp_path, ["With_Mask/1.jpg", "with mask/2.jpg", "none/3.jpg"]))
        assert said == [
            "are these classes one? 'With_Mask', 'with mask'; if so, give them one name"
        ]


NAMES = st.one_of(
    st.sampled_from(("a", "b", "with mask", "Train", "test", "val", "@eaDir", ".x", "Thumbs.db")),
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\0"), max_size=9
    ).filter(lambda name: name.strip(". ") != ""),
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(st.lists(PATHS, max_size=12))
# One folder, named as a split, around the classes: it gives no split.
@example(["Train/a", "Train/0/a", "Train/00/a"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_photo_is_listed_once_or_the_set_is_refused_in_a_line(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path in paths:
            try:
                folder(root, [path])
            except OSError:
                continue  # A file is there already, or the name is too long.
        there = {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and not any(map(is_junk, path.relative_to(root).parts))
        }
        try:
            labelled = sources.list_labelled(name)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) > 30
            return
        found = labelled.files["path"].to_pylist()
        assert len(found) == len({*found})
        # What is missing has no folder of a class.
        assert {*found} <= there
        has_splits = "" not in labelled.files["given_split"].to_pylist()
        is_around = len({Path(path).parts[0] for path in found}) == 1
        deepest = 3 if has_splits or is_around else 2
        assert all(len(Path(path).parts) < deepest for path in there - {*found})
        for row in labelled.files.to_pylist():
            label = labelled.class_names[row["label"]]
            assert label in [part.strip() for part in Path(row["path"]).parts[:2]]
