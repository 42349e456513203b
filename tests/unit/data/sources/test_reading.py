"""What Ray Data's tasks read, without Ray."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from mask_ray.data import sources
from mask_ray.data.sources.reading import Files, num_blocks
from tests.support import object_store, photo_archives

FILES = photo_archives.FILES


def read(data: str, seed: int | None = 0, num_tasks: int = 2) -> list[dict[str, Any]]:
    """The rows of all tasks, each sent to where it runs as Ray sends it."""
    labelled = sources.list_labelled(data)
    tasks = Files(labelled.roots, labelled.files, seed).get_read_tasks(num_tasks)
    sent = [cloudpickle.loads(cloudpickle.dumps(task)) for task in tasks]
    return pa.concat_tables([table for task in sent for table in task()]).to_pylist()


def named(rows: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(hashlib.sha256(row["bytes"]).hexdigest(), row["label"]) for row in rows}


def test_every_kind_gives_the_same_labelled_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {(hashlib.sha256(c).hexdigest(), "ab".index(n[0])) for n, c in FILES.items()}
    folder = photo_archives.folder(tmp_path / "photos")
    (tmp_path / "a.zip").write_bytes(photo_archives.zip_bytes())
    (tmp_path / "a.tar.xz").write_bytes(photo_archives.tar_bytes(mode="w:xz"))
    rows = [f"photos/{name},{name[0]}" for name in FILES]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *rows]))
    for source in (folder, tmp_path / "a.zip", tmp_path / "a.tar.xz", tmp_path / "photos.csv"):
        assert named(read(str(source))) == expected
    with object_store.serve({f"set/{name}": c for name, c in FILES.items()}) as address:
        for name, value in object_store.environment(address).items():
            monkeypatch.setenv(name, value)
        assert named(read("s3://photos/set")) == expected


def test_rows_tell_where_they_are_from(tmp_path: Path) -> None:
    first = photo_archives.folder(tmp_path / "1", {"a/x": b"ax"})
    second = photo_archives.folder(tmp_path / "2", {"b/y": b"by"})
    (tmp_path / "m.csv").write_text("path,label,split,group\n1/a/x,c,test,g\n")
    rows = sorted(read(f"{first}\n{second}\n{tmp_path / 'm.csv'}"), key=lambda row: row["label"])
    assert [tuple(row.values()) for row in rows] == [
        (f"{first}/a/x", b"ax", "", 0, "", ""),
        (f"{second}/b/y", b"by", "", 1, "", ""),
        (f"{tmp_path}/1/a/x", b"ax", "", 2, "test", "g"),
    ]


def test_a_file_that_is_gone_is_one_row_s_error(tmp_path: Path) -> None:
    photo_archives.folder(tmp_path)
    (tmp_path / "m.csv").write_text("path,label\na/1.jpg,a\ngone.jpg,b\na,b\n")
    errors = {Path(row["path"]).name: row["error"] for row in read(str(tmp_path / "m.csv"))}
    assert errors == {
        "1.jpg": "",
        "gone.jpg": "cannot be read: No such file or directory",
        "a": "cannot be read: Is a directory",
    }


def test_a_seed_gives_one_order_and_none_that_of_the_files(tmp_path: Path) -> None:
    files = {f"{name}/{index:03}": b"" for name in "ab" for index in range(100)}
    photo_archives.folder(tmp_path, files)
    paths = [[row["path"] for row in read(str(tmp_path), seed)] for seed in (0, 0, 1, None)]
    assert paths[0] == paths[1] != paths[2]
    assert paths[3] == sorted(paths[0]) != paths[0]


@pytest.mark.parametrize(("num_files", "expected"), [(1, 1), (8, 8), (1000, 8), (256_000, 1000)])
def test_blocks_are_many_or_of_256(num_files: int, expected: int) -> None:
    assert num_blocks(num_files) == expected
