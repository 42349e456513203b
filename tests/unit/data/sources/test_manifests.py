"""Tables as people have them: from spreadsheets, from Windows, written by hand."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask_ray.data import sources
from mask_ray.data.sources import DataError

COLUMNS = ("path", "label", "split", "group")


def listed(file: Path) -> list[tuple[str, ...]]:
    labelled = sources.list_labelled(str(file))
    return [
        (row["path"], labelled.class_names[row["label"]], row["given_split"], row["given_group"])
        for row in labelled.files.to_pylist()
    ]


def written(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    file = folder / "photos.csv"
    file.write_bytes(content.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encoding_and_separator_are_found(
    tmp_path: Path, encoding: str, separator: str, line_end: str
) -> None:
    rows = [COLUMNS[:3], ("ä/1.jpg", "mit Maske", "Training"), ("2.jpg", "ohne", "TEST")]
    content = "".join(separator.join(row) + line_end for row in rows)
    # Only the two that say their order themselves.
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    assert listed(written(tmp_path, mark + content, encoding)) == [
        ("ä/1.jpg", "mit Maske", "train", ""),
        ("2.jpg", "ohne", "test", ""),
    ]


def test_spaces_and_case_in_it_mean_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, " Path , LABEL,Split \n1.jpg, a , train\n 2.jpg ,b,Test \n3.jpg,a,\n")
    assert listed(file) == [
        ("1.jpg", "a", "train", ""), ("2.jpg", "b", "test", ""), ("3.jpg", "a", "", ""),
    ]  # fmt: skip


def test_paths_of_windows_lead_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    file = written(tmp_path, "path,label\na\\1.jpg,a\nb/c\\2.jpg,b\n")
    assert [path for path, *_ in listed(file)] == ["a/1.jpg", "b/c/2.jpg"]


def test_a_name_with_such_a_sign_stays_if_the_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a\\1.jpg").write_bytes(b"x")
    file = written(tmp_path, "path,label\na\\1.jpg,a\n2.jpg,b\n")
    assert [path for path, *_ in listed(file)] == ["a\\1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("path,label\nC:\\1.jpg,a\n", "utf-8", r"relative to itself, or of .*; row 1 has C:"),
        ("path,label\n\\\\nas\\1.jpg,a\n", "utf-8", r"or of this system; row 1 has \\\\nas"),
        ("path,label\nä.jpg,a\nb.jpg,b\n", "cp1252", r"must be UTF-8 or UTF-16; save it as CSV in"),
        ("path,label, Label\nx,a,b\n", "utf-8", r"must have one column label; it has 2"),
        ("datei;klasse\nx;a\n", "utf-8", r"must have a column path; it has datei;klasse"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: str, encoding: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        listed(written(tmp_path, content, encoding))
    assert "\n" not in str(caught.value)


def test_no_path_of_windows_leads_out_of_an_image_folder(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,label\n..\\1.jpg,a\n2.jpg,b\n")
    with pytest.raises(DataError, match=r"must name files below its folder; got \.\./1"):
        sources.list_labelled(str(tmp_path))


def test_folders_of_splits_may_have_tables_in_any_spelling(tmp_path: Path) -> None:
    for name in ("Training", "Valid", "TEST"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("file_name,label\n1.jpg,a\n2.jpg,b\n")
    assert {(path.split("/")[0], split) for path, _, split, _ in listed(tmp_path)} == {
        ("Training", "train"), ("Valid", "val"), ("TEST", "test"),
    }  # fmt: skip


TEXT = st.text(
    st.characters(blacklist_categories=("C", "Z"), blacklist_characters="\\"), max_size=8
)
CELLS = st.builds(lambda first, rest: f"x{first}{rest}", TEXT, TEXT)
LABELS = st.sampled_from(("with mask", "ohne"))
SPLITS = st.sampled_from(("", "Train", "test"))
ROWS = st.lists(st.tuples(CELLS, LABELS, SPLITS, TEXT), min_size=2, max_size=8)


@given(
    ROWS,
    st.sampled_from((",", ";", "\t", "|")),
    st.sampled_from(("utf-8", "utf-8-sig", "utf-16")),
    st.booleans(),
    st.permutations(range(4)),
)
@settings(max_examples=150, deadline=None)
def test_any_table_is_read_as_it_was_written(
    rows: list[tuple[str, ...]], separator: str, encoding: str, is_quoted: bool, order: list[int]
) -> None:
    rows = [(*rows[0][:1], "with mask", *rows[0][2:]), (*rows[1][:1], "ohne", *rows[1][2:]), *rows]
    buffer = io.StringIO()
    quoting = csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting)
    for row in (COLUMNS, *rows):
        writer.writerow([row[place] for place in order])
    with tempfile.TemporaryDirectory() as name:
        found = listed(written(Path(name), buffer.getvalue(), encoding))
    assert found == [(path, label, split.lower(), group) for path, label, split, group in rows]
