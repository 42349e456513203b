"""Parts of a prediction: whole or not there, each row once, and only for what they were made of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mask_ray.batch_prediction.output import OutputError, Parts, is_among, keys

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
            OutputError, match=r"started with model_version 1; got 2\. .*out.parquet.parts"
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
