"""Parts of a prediction: whole or not there, each row once, and only for what they were made of."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mask_ray.batch_prediction.output import OutputError, Parts, is_among, keys
from mask_ray.config import Uri

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string())])
MADE_WITH = {"source": "photos", "model_version": "1"}


def rows(*paths: str, label: str | None = "cat") -> pa.Table:
    return pa.table([list(paths), [label] * len(paths)], schema=SCHEMA)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def begin(output: Path, *paths: str) -> None:
    """As a process does that is killed before the end."""
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH):
        parts.write(rows(*paths))


def test_parts_become_one_file_in_their_order(output: Path) -> None:
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH):
        parts.write(rows("b", "a"))
        parts.write(rows("c", label=None))
        assert not output.exists()
        counts = parts.join("parquet")

    assert counts == {"cat": 2, "": 1}
    assert pq.read_table(output)["path"].to_pylist() == ["b", "a", "c"]
    assert list(output.parent.iterdir()) == [output]


def test_csv_says_the_same_and_leaves_nulls_empty(output: Path) -> None:
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH):
        parts.write(rows("a,b"))
        parts.write(rows('c"', label=None))
        parts.join("csv")

    assert output.read_text().splitlines() == ['"path","label"', '"a,b","cat"', '"c""",']


def test_what_was_done_is_known_to_the_next(output: Path) -> None:
    begin(output, "a", "b")
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH) as done:
        assert is_among(["a", "c", "b"], done).tolist() == [True, False, True]
        parts.write(rows("c"))
        parts.join("parquet")

    assert pq.read_table(output)["path"].to_pylist() == ["a", "b", "c"]


def test_an_unfinished_part_does_not_count(output: Path) -> None:
    begin(output, "a")
    unfinished = output.with_name("out.parquet.parts") / "00000001.parquet.unfinished"
    unfinished.write_bytes(b"PAR1 and no more")

    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH) as done:
        assert len(done) == 1
        parts.join("parquet")
    assert pq.read_table(output)["path"].to_pylist() == ["a"]


def test_parts_of_another_model_are_named_with_what_differs(output: Path) -> None:
    begin(output, "a")
    with (
        pytest.raises(
            OutputError, match=r"was started with model_version 1; got 2\. .*out.parquet.parts"
        ),
        Parts(output, SCHEMA).opened(MADE_WITH | {"model_version": "2"}),
    ):
        pass


def test_a_finished_output_is_not_replaced(output: Path) -> None:
    output.write_text("precious")
    with (
        pytest.raises(OutputError, match="output must not exist yet"),
        Parts(output, SCHEMA).opened(MADE_WITH),
    ):
        pass
    assert output.read_text() == "precious"


def test_two_processes_do_not_write_one_output(output: Path) -> None:
    with (
        Parts(output, SCHEMA).opened(MADE_WITH),
        pytest.raises(OutputError, match="another process is writing"),
        Parts(output, SCHEMA).opened(MADE_WITH),
    ):
        pass


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be written: Not a directory"),
        Parts(tmp_path / "file" / "out.csv", SCHEMA).opened(MADE_WITH),
    ):
        pass


def test_keys_are_of_one_length_and_differ() -> None:
    assert len(np.unique(keys(["a", "b", "a" * 1000, "ü"]))) == 4
    assert not is_among(["a"], keys([])).any()


def folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: bytes(len(content)),
        # The labels of a page, while its header and the other column stay readable.
        lambda content: content.replace(b"cat", b"dog", 1),
    ],
)
def test_a_damaged_part_is_dropped_and_done_again(
    output: Path, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    begin(output, "a", "b")
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH):
        parts.write(rows("c"))
    first = folder_of(output) / "00000000.parquet"
    content = first.read_bytes()
    assert damage(content) != content
    first.write_bytes(damage(content))

    with parts.opened(MADE_WITH) as done:
        assert is_among(["a", "b", "c"], done).tolist() == [False, False, True]
        parts.write(rows("a", "b"))
        parts.join("parquet")
    assert pq.read_table(output).to_pydict() == {"path": ["c", "a", "b"], "label": ["cat"] * 3}
    assert "00000000.parquet is dropped" in "".join(capfd.readouterr())


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_parts_without_a_manifest_are_dropped(output: Path, content: str | None) -> None:
    begin(output, "a")
    manifest = folder_of(output) / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)

    with Parts(output, SCHEMA).opened(MADE_WITH) as done:
        assert len(done) == 0
    assert json.loads(manifest.read_text()) == MADE_WITH


def test_the_manifest_is_for_its_owner_alone(output: Path) -> None:
    begin(output, "a")
    assert (folder_of(output) / "manifest.json").stat().st_mode & 0o777 == 0o600


def test_csv_has_no_cell_that_a_spreadsheet_would_run(output: Path) -> None:
    parts = Parts(output, SCHEMA)
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    with parts.opened(MADE_WITH):
        parts.write(rows(*formulas, "a=b", "", label="=cat"))
        parts.join("csv")

    with output.open(newline="") as file:
        _, *read = csv.reader(file)
    assert [path for path, _ in read] == [f"'{text}" for text in formulas] + ["a=b", ""]
    assert {label for _, label in read} == {"'=cat"}


def test_a_parquet_file_keeps_the_texts(output: Path) -> None:
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH):
        parts.write(rows("=1+1"))
        parts.join("parquet")
    assert pq.read_table(output)["path"].to_pylist() == ["=1+1"]


def test_a_full_disk_is_one_line_and_keeps_the_parts(small_disk: Path) -> None:
    output = small_disk / "out.parquet"
    begin(output, "a")
    noise = [bytes(random.Random(n).randbytes(40)).hex() for n in range(20_000)]
    parts = Parts(output, SCHEMA)
    with (
        pytest.raises(OutputError, match=r"cannot be written: .*No space left"),
        parts.opened(MADE_WITH),
    ):
        parts.write(rows(*noise))

    with Parts(output, SCHEMA).opened(MADE_WITH) as done:
        assert len(done) == 1
    assert not [path for path in small_disk.rglob("*") if "unfinished" in path.name]


def test_the_manifest_has_no_secret_and_takes_the_source_given_again(output: Path) -> None:
    source = Uri("https://me:s3cret@host/photos.zip?sig=s3cret")
    parts = Parts(output, SCHEMA)
    with parts.opened(MADE_WITH | {"source": source}):
        parts.write(rows("a"))
    manifest = folder_of(output) / "manifest.json"
    assert "s3cret" not in manifest.read_text()

    # As an earlier version wrote it.
    manifest.write_text(json.dumps(MADE_WITH | {"source": source.full}))
    with parts.opened(MADE_WITH | {"source": source}) as done:
        assert len(done) == 1
