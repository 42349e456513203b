"""Folders, manifests and image folders, here and in an object store, list the same files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import sources
from mask_ray.data.sources import DataError, downloads
from mask_ray.data.sources.listing import list_folder
from mask_ray.data.sources.location import locate
from mask_ray.data.sources.reading import Files
from tests.support import object_store, photo_archives


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an object store with a bucket named photos."""
    objects = {f"set/{name}": content for name, content in photo_archives.FILES.items()}
    objects["set/.hidden/a.jpg"] = b""
    objects["sets.tar.gz"] = photo_archives.tar_bytes()
    objects["list.csv"] = b"path,label,group\nset/a/1.jpg,a,g\nset/b/3.jpg,b,\n"
    objects["uris.csv"] = b"path,label\ns3://photos/set/a/1.jpg,a\ns3://photos/set/b/3.jpg,b\n"
    with object_store.serve(objects) as address:
        yield address


@pytest.fixture
def at_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environment(s3).items():
        monkeypatch.setenv(name, value)


def rows(data: str) -> list[dict[str, Any]]:
    labelled = sources.list_labelled(data)
    return [
        {**row, "label": labelled.class_names[row["label"]]}
        for row in labelled.files.drop_columns("root").to_pylist()
    ]


def labels(data: str) -> dict[str, str]:
    return {row["path"]: row["label"] for row in rows(data)}


LABELS = {"a/1.jpg": "a", "a/deep/2.jpg": "a", "b/3.jpg": "b"}


class TestFolders:
    def test_a_file_has_the_class_of_its_folder(self, tmp_path: Path) -> None:
        photo_archives.folder(tmp_path, photo_archives.FILES | {"readme.txt": b"", "a/.x": b""})
        assert labels(str(tmp_path)) == LABELS

    def test_files_come_in_the_order_of_their_parts(self, tmp_path: Path) -> None:
        names = ["b/1", "a/2", "a/b/c", "a/b.jpg", "a/b-/x", "a/10"]
        photo_archives.folder(tmp_path, dict.fromkeys(names, b""))
        listed = list_folder(locate(str(tmp_path))).files["path"].to_pylist()
        assert listed == sorted(names, key=lambda name: Path(name).parts)

    def test_several_are_united_by_class_name(self, tmp_path: Path) -> None:
        first = photo_archives.folder(tmp_path / "1", {"b/1": b"", "c/2": b""})
        second = photo_archives.folder(tmp_path / "2", {"a/3": b"", "b/4": b""})
        labelled = sources.list_labelled(f"{first}\n{second}")
        assert labelled.class_names == ["a", "b", "c"]
        assert labels(f"{first}\n{second}") == {"b/1": "b", "c/2": "c", "a/3": "a", "b/4": "b"}
        assert [str(root) for root in labelled.roots] == [str(first), str(second)]

    def test_one_class_each_is_enough_of_several(self, tmp_path: Path) -> None:
        first = photo_archives.folder(tmp_path / "1", {"a/1": b""})
        second = photo_archives.folder(tmp_path / "2", {"b/1": b""})
        sources.check(f"{first}\n{second}")
        with pytest.raises(DataError, match=r"at least 2 folders .* holds 1: a"):
            sources.check(str(first))

    def test_a_name_that_is_no_text_is_told(self, tmp_path: Path) -> None:
        photo_archives.folder(tmp_path, {"a/1": b"", "b/\udcff": b""})
        with pytest.raises(DataError, match=r"names of files must be UTF-8; .* has 'b/"):
            sources.list_labelled(str(tmp_path))

    def test_what_is_no_source_is_told_the_kinds(self, tmp_path: Path) -> None:
        text = photo_archives.folder(tmp_path, {"notes.txt": b""}) / "notes.txt"
        with pytest.raises(DataError, match=r"a folder, a \.zip or .* got .*notes\.txt\. A submi"):
            sources.check(str(text))
        with pytest.raises(DataError, match=r"gone\.zip\. A submitted job"):
            sources.check(str(tmp_path / "gone.zip"))
        with pytest.raises(DataError, match=r"nonsense://x cannot be opened: .*nonsense"):
            sources.list_labelled("nonsense://x")


class TestManifests:
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_columns_say_all(self, tmp_path: Path, ending: str) -> None:
        table = pa.table(
            {
                "path": ["1.jpg", "deep/2.jpg", str(tmp_path / "3.jpg")],
                "label": ["007", "NA", "007"],
                "split": ["Validation", None, "test"],
                "group": ["p1", "p2", None],
                "note": [1, 2, 3],
            }
        )
        file = tmp_path / f"photos.{ending}"
        pacsv.write_csv(table, file) if ending == "csv" else pq.write_table(table, file)
        listed = [tuple(row.values()) for row in rows(str(file))]
        assert listed == [
            ("1.jpg", "007", "val", "p1"),
            ("deep/2.jpg", "NA", "", "p2"),
            (str(tmp_path / "3.jpg"), "007", "test", ""),
        ]

    def test_numbers_may_be_labels(self, tmp_path: Path) -> None:
        file = tmp_path / "photos.parquet"
        pq.write_table(pa.table({"path": ["x", "y"], "label": [0, 1]}), file)
        assert labels(str(file)) == {"x": "0", "y": "1"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("file,label\nx,a\n", r"photos\.csv must have a column path; it has file, label"),
            ("path,label\nx,a\ny,\n", r"photos\.csv must give a label in every row; row 2 has"),
            ("path,label\n,a\n", r"photos\.csv must give a path in every row; row 1 has"),
            (
                "path,label,split\nx,a,holdout\n",
                r"split must be train, val or test, or empty; got ho",
            ),
            ("path,label\ns3://b/x,a\ny,b\n", r"must have paths of one kind; some begin with s3:"),
            ("", r"photos\.csv cannot be read: Empty CSV"),
            ("path,label\nx\n", r"photos\.csv cannot be read: .*Expected 2 columns"),
            ("path\nx\n", r"or 2 labels; .*photos\.csv holds 0: none"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "photos.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            sources.list_labelled(str(tmp_path / "photos.csv"))

    def test_a_broken_row_is_not_repeated(self, tmp_path: Path) -> None:
        (tmp_path / "photos.csv").write_text("path,label\nx,a\nroot:secret:0:0\n")
        with pytest.raises(DataError, match="Expected 2 columns, got 1") as raised:
            sources.list_labelled(str(tmp_path / "photos.csv"))
        assert "secret" not in str(raised.value)

    def test_an_image_folder_has_its_labels_in_metadata_csv(self, tmp_path: Path) -> None:
        (tmp_path / "metadata.csv").write_text("file_name,label\nx/1.jpg,a\n2.jpg,b\n")
        assert labels(str(tmp_path)) == {"x/1.jpg": "a", "2.jpg": "b"}

    def test_or_in_metadata_jsonl(self, tmp_path: Path) -> None:
        lines = [
            '{"file_name": "x/1.jpg", "label": 7, "boxes": [{"x": 1}], "group": "2020-01-01"}',
            "",
            '{"label": "007", "file_name": "2.jpg", "split": "validation", "boxes": "none"}',
        ]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        assert [tuple(row.values()) for row in rows(str(tmp_path))] == [
            ("x/1.jpg", "7", "", "2020-01-01"),
            ("2.jpg", "007", "val", ""),
        ]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"file_name": ', r"metadata\.jsonl cannot be read: line 2: Expecting value"),
            ("[" * 100_000, r"metadata\.jsonl cannot be read: line 2: maximum recursion"),
            (r'{"file_name": "\ud800"}', r'file_name must be Unicode text; got "\\ud800"'),
            ("[]", r"metadata\.jsonl must hold an object in every line; line 2 is none"),
            ('{"file_name": "1", "label": ["a"]}', r'line 2: label must be a text .* got \["a"\]'),
            ('{"file_name": "1"}', r"must give a label in every row; row 2 has none"),
            (
                '{"file_name": "../1", "label": "b"}',
                r"must name files below its folder; got \.\./1",
            ),
        ],
    )
    def test_mistakes_in_it_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "x", "label": "a"}}\n{line}\n')
        with pytest.raises(DataError, match=message):
            sources.list_labelled(str(tmp_path))

    def test_an_empty_metadata_jsonl_holds_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "metadata.jsonl").write_text("")
        with pytest.raises(
            DataError, match=r"metadata\.jsonl must have a column file_name; it has"
        ):
            sources.list_labelled(str(tmp_path))

    @pytest.mark.parametrize("name", ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg"])
    def test_an_image_folder_names_no_files_elsewhere(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "metadata.csv").write_text(f"file_name,label\nx,a\n{name},b\n")
        with pytest.raises(DataError, match=f"must name files below its folder; got {name}"):
            sources.list_labelled(str(tmp_path))

    def test_folders_of_an_image_folder_are_its_splits(self, tmp_path: Path) -> None:
        for name in ("train", "validation", "test"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "metadata.csv").write_text("file_name,label\n1.jpg,a\n2.jpg,b\n")
            (tmp_path / name / "metadata.jsonl").write_text("is not read beside the other")
        assert {(row["path"], row["given_split"]) for row in rows(str(tmp_path))} == {
            (f"{folder}/{name}", split)
            for folder, split in (("train", "train"), ("validation", "val"), ("test", "test"))
            for name in ("1.jpg", "2.jpg")
        }


@pytest.mark.usefixtures("at_s3")
class TestObjectStores:
    def test_a_folder_of_classes(self) -> None:
        assert labels("s3://photos/set") == LABELS

    def test_an_endpoint_may_be_in_the_uri(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        uri = f"s3://photos/set/?endpoint_override={s3.replace(':', '%3A')}&scheme=http"
        assert labels(uri) == LABELS

    def test_the_files_of_a_manifest_are_read_from_its_endpoint(
        self, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        query = f"?endpoint_override={s3.replace(':', '%3A')}&scheme=http"
        for name, prefix in (("list", ""), ("uris", "photos/")):
            labelled = sources.list_labelled(f"s3://photos/{name}.csv{query}")
            assert labelled.files["path"].to_pylist() == [
                f"{prefix}set/a/1.jpg", f"{prefix}set/b/3.jpg",
            ]  # fmt: skip
            files = Files(labelled.roots, labelled.files, seed=None)
            (table,) = (table for task in files.get_read_tasks(1) for table in task())
            assert table["bytes"].to_pylist() == [b"one", b"three"]

    def test_an_archive_is_fetched_once(self, home: Path) -> None:
        fetched = sources.fetch("s3://photos/sets.tar.gz")
        assert Path(fetched).is_relative_to(home) and labels(fetched) == LABELS
        before = Path(fetched).stat().st_ino
        assert Path(sources.fetch("s3://photos/sets.tar.gz")).stat().st_ino == before

    def test_a_manifest_and_what_it_names(self) -> None:
        listed = [tuple(row.values()) for row in rows("s3://photos/list.csv")]
        assert listed == [("set/a/1.jpg", "a", "", "g"), ("set/b/3.jpg", "b", "", "")]

    def test_a_manifest_here_may_name_files_there(self, tmp_path: Path) -> None:
        file = tmp_path / "list.csv"
        file.write_text("path,label\ns3://photos/set/a/1.jpg,a\ns3://photos/set/b/3.jpg,b\n")
        assert labels(str(file)) == {"photos/set/a/1.jpg": "a", "photos/set/b/3.jpg": "b"}

    @pytest.mark.parametrize("uri", ["s3://photos/nothing", "s3://no-such-bucket/set"])
    def test_nothing_there_is_told(self, uri: str) -> None:
        with pytest.raises(DataError, match=f"there is nothing at {uri}"):
            sources.list_labelled(uri)

    def test_a_file_is_read_by_its_address(self) -> None:
        assert sources.read_file("s3://photos/set/a/deep/2.jpg") == b"two"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://me:pass@host:1/a/b.zip?X-Sig=secret&x=1", "https://host:1/a/b.zip"),
        ("https://host/b.zip?sig=secret#sha256=ab12", "https://host/b.zip#sha256=ab12"),
        ("https://host?secret", "https://host"),
        ("s3://key:secret@bucket/a@b?scheme=http#secret", "s3://bucket/a@b"),
        ("/data/what?/a@b#1.zip", "/data/what?/a@b#1.zip"),
        ("file:///data/what?", "file:///data/what?"),
        ("/data\nhttps://me@host/a.zip", "/data\nhttps://host/a.zip"),
        ("synthetic:20", "synthetic:20"),
    ],
)
def test_sources_are_shown_without_secrets(source: str, expected: str) -> None:
    assert sources.shown(source) == expected


def test_errors_and_parameters_show_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
    url = "http://me:secret@127.0.0.1:1/a.zip?sig=secret"
    given = [url, "s3://key:secret@bucket/a b?x=secret", "nonsense://me:secret@x"]
    for source in given:
        with pytest.raises(DataError, match=" cannot be ") as raised:
            sources.list_labelled(source)
        assert "secret" not in str(raised.value)
    params = data.params(DataSettings(data="/photos", test_data=url))
    assert params["data"] == "/photos" and params["test_data"] == "http://127.0.0.1:1/a.zip"


def test_other_schemes_are_opened_by_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for name, content in photo_archives.FILES.items():
        memory.pipe(f"/photos/{name}", content)
    assert labels("memory://photos") == LABELS
