"""A source that is not what it should be is named as what it is."""

from pathlib import Path

import pytest

from mask_ray.data import DataError, sources
from tests.support import photo_archives


def test_a_path_that_does_not_exist_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is nothing at {tmp_path}/nope"):
        sources.check(f"{tmp_path}/nope")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=f"got {tmp_path}/notes.txt"):
        sources.check(f"{tmp_path}/notes.txt")


def test_the_folder_of_one_class_gets_the_folder_above_it(tmp_path: Path) -> None:
    photo_archives.folder(tmp_path / "set", {"cat/1.jpg": b"", "dog/2.jpg": b""})
    with pytest.raises(DataError, match=f"is one class, give the folder above it, {tmp_path}/set"):
        sources.check(f"{tmp_path}/set/cat")


def test_a_folder_alone_gets_no_such_hint(tmp_path: Path) -> None:
    photo_archives.folder(tmp_path / "set", {"cat/1.jpg": b""})
    with pytest.raises(DataError) as refused:
        sources.check(f"{tmp_path}/set/cat")
    assert "the folder above" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/data/photos/", "photos"),
        ("s3://key:secret@bucket/a/b.csv?versionId=3", "b.csv"),
        ("https://example.org/set.zip#sha256=12", "set.zip"),
        ("/a/first\n/b/second", "first + second"),
        ("synthetic:500", "synthetic:500"),
    ],
)
def test_a_title_is_the_last_part_of_each_path(source: str, expected: str) -> None:
    assert sources.title(source) == expected
