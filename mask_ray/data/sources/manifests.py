"""Read tables of labelled files: CSV or Parquet, and Hugging Face's metadata.csv or .jsonl.

A path in a table is relative to the table or absolute. Paths may also be URIs, if all of them
are in one file system. Texts are stripped, and names of columns may have any case, since people
write tables by hand and in spreadsheets.
"""

import csv
import json
import os
import re
from collections.abc import Iterable
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mask_ray.data.sources.folder_splits import split_of_name
from mask_ray.data.sources.listing import SCHEMA, Listing, of_columns
from mask_ray.data.sources.location import METADATA, DataError, Place, locate, reached

_SPLIT_FOLDERS = ("train", "validation", "val", "valid", "test")
_NAMED = ("path", "label", "split", "group")
_NAMED_OF_FOLDER = ("file_name", *_NAMED[1:])
_LINES_TOGETHER = 65_536
# Characters of a value in an error.
_MAX_QUOTED = 100
# What separates columns, and the encodings that a file says itself that it has.
_SEPARATORS = (",", ";", "\t", "|")
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_UTF8_MARK = "\ufeff"
_MAX_HEADER_BYTES = 65_536
# A drive or a server of Windows.
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# The end of pyarrow's error about a row, which is the row.
_OF_ROW = re.compile(r"(Expected \d+ columns, got \d+).*", re.DOTALL)


def read_manifest(place: Place) -> Listing:
    """List the files in a manifest, from its columns path, label, split and group.

    Only `path` is required.

    Raises:
        DataError: the manifest cannot be read, lacks the column, or has an invalid value.
    """
    table = _read(place)
    _check_has(table, "path", place)
    path = _paths(table["path"], "path", place)
    label, split, group = _given(table, place)
    root, path = _rooted(path, place)
    return Listing(root, of_columns(path, label, split, group))


def has_metadata(folder: Place) -> bool:
    """Check for a Hugging Face image folder."""
    return bool(_metadata_places(folder))


def _metadata_places(folder: Place) -> list[Place]:
    """Find the tables that exist, one in each folder."""
    folders = folder, *map(folder.child, _split_folders(folder))
    tables = ([each.child(name) for name in METADATA] for each in folders)
    found = (next((place for place in some if place.is_file()), None) for some in tables)
    return [place for place in found if place is not None]


def _split_folders(folder: Place) -> list[str]:
    """Return the names of the folders that may be splits with a table each."""
    if folder.filesystem is not None:
        # Listing a store takes a request for every thousand files.
        return [spell(name) for name in _SPLIT_FOLDERS for spell in (str.lower, str.title)]
    if not Path(folder.path).is_dir():
        return []
    with reached(folder, lambda: os.scandir(folder.path)) as entries:
        return sorted(e.name for e in entries if split_of_name(e.name) and e.is_dir())


def read_image_folder(folder: Place) -> Listing:
    """List the files in metadata.csv or metadata.jsonl, from its columns file_name and label.

    The table is in the folder, or one is in each of its folders train, validation and test, in any
    usual spelling, which then give the splits. The columns `split` and `group` mean the same as in
    a manifest.

    Raises:
        DataError: as `read_manifest`.
    """
    tables = [_image_table(folder, place) for place in _metadata_places(folder)]
    return Listing(folder, pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries())


def _image_table(folder: Place, place: Place) -> pa.Table:
    table = _read(place)
    _check_has(table, "file_name", place)
    path = _paths(table["file_name"], "file_name", place)
    _check_below(path, place)
    label, split, group = _given(table, place)
    inside = place.parent().path[len(folder.path) + 1 :]
    if inside:
        path = pc.binary_join_element_wise(inside, path, "/")
        split = pa.repeat(split_of_name(inside), len(path)) if split is None else split
    return of_columns(path, label, split, group)


def _given(table: pa.Table, place: Place) -> tuple[pa.Array | None, ...]:
    """Return label, split and group, checked; None for a missing column."""
    label, split, group = (
        _text(table[name]) if name in table.column_names else None for name in _NAMED[1:]
    )
    if label is not None:
        _check_none_empty("label", label, place)
    return label, None if split is None else _checked_splits(split, place), group


def _read(place: Place) -> pa.Table:
    def read() -> pa.Table:
        with place.opener().open_input_file(place.path) as file:
            if place.path.lower().endswith(".parquet"):
                schema = pq.read_schema(file)
                return pq.read_table(file, columns=[n for n in schema.names if _plain(n) in _NAMED])
            if place.path.lower().endswith(".jsonl"):
                return _read_json_lines(BufferedReader(file), place)
            return _read_csv(file, place)

    table = reached(place, read)
    return _with_plain_names(table, place)


def _plain(name: str) -> str:
    """Return the name of a column as it is meant."""
    return name.strip().strip(_UTF8_MARK).lower()


def _with_plain_names(table: pa.Table, place: Place) -> pa.Table:
    """Rename columns in other case, or with spaces around them."""
    wanted = {*_NAMED, *_NAMED_OF_FOLDER}
    names = [_plain(name) if _plain(name) in wanted else name for name in table.column_names]
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise DataError(f"{place} must have one column {twice[0]}; it has {names.count(twice[0])}")
    return table.rename_columns(names)


def _read_csv(file: Any, place: Place) -> pa.Table:
    """Read a CSV file, in the encoding and with the separator that its first line shows."""
    start = file.read(_MAX_HEADER_BYTES)
    file.seek(0)
    encoding = _ENCODINGS.get(start[:2], "utf-8")
    header = re.split(r"[\r\n]", start.decode(encoding, "replace").lstrip(_UTF8_MARK), maxsplit=1)[
        0
    ]
    separator = max(_SEPARATORS, key=lambda sign: _num_known(header, sign))
    names = next(csv.reader([header], delimiter=separator), [])
    # Otherwise values such as 007 or NA would be converted.
    text = {name: pa.string() for name in names if _plain(name) in {*_NAMED, *_NAMED_OF_FOLDER}}
    try:
        return pacsv.read_csv(
            file,
            read_options=pacsv.ReadOptions(encoding=encoding),
            parse_options=pacsv.ParseOptions(delimiter=separator),
            convert_options=pacsv.ConvertOptions(column_types=text),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError):
            raise DataError(f"{place} must be UTF-8 or UTF-16; save it as CSV in UTF-8") from None
        # pyarrow's errors end with the row itself, which must not be repeated.
        raise pa.ArrowInvalid(_OF_ROW.sub(r"\1", str(error))) from None


def _num_known(header: str, separator: str) -> int:
    """Count the columns in a header that are known, if this separates them."""
    names = next(csv.reader([header], delimiter=separator), [])
    return sum(_plain(name) in {*_NAMED, *_NAMED_OF_FOLDER} for name in names)


def _read_json_lines(lines: Iterable[bytes], place: Place) -> pa.Table:
    """Read one object a line.

    pyarrow's reader would convert some texts to times, and needs the types of numeric columns.
    """
    numbered = enumerate(lines, 1)
    tables = []
    while some := list(islice(numbered, _LINES_TOGETHER)):
        rows = [_row(number, line, place) for number, line in some if line.strip()]
        names = [name for name in _NAMED_OF_FOLDER if any(name in row for row in rows)]
        texts = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
        tables.append(pa.table(texts))
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})


def _row(number: int, line: bytes, place: Place) -> dict[str, str]:
    """Parse a line. Returns the needed fields as text."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} cannot be read: line {number}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{place} must hold an object in every line; line {number} is none")
    named = {name: content[name] for name in _NAMED_OF_FOLDER if content.get(name) is not None}
    return {name: _value(value, f"{place}, line {number}: {name}") for name, value in named.items()}


def _value(value: Any, of: str) -> str:
    if not isinstance(value, str | int | float):
        raise DataError(f"{of} must be a text or a number; got {json.dumps(value)[:_MAX_QUOTED]}")
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{of} must be Unicode text; got {json.dumps(text)[:_MAX_QUOTED]}")
    return text


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Convert to strings without spaces around, with an empty string for a missing value."""
    text = pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))
    return pa.concat_arrays([pa.array([], pa.string()), *text.chunks])


def _paths(column: pa.ChunkedArray, name: str, place: Place) -> pa.Array:
    """Read paths, also those that Windows writes, and check that none is missing.

    Raises:
        DataError: a path is missing, or begins with a drive or a server of Windows.
    """
    path = _text(column)
    _check_none_empty(name, path, place)
    if not pc.any(pc.match_substring(path, "\\")).as_py():
        return path
    of_windows = pc.index(pc.match_substring_regex(path, f"^({_OF_WINDOWS.pattern})"), True).as_py()
    if of_windows >= 0:
        raise DataError(
            f"{place} must have paths relative to itself, or of this system; row {of_windows + 1} "
            f"has {path[of_windows].as_py()[:_MAX_QUOTED]}"
        )
    # Here a name may hold such a sign, though hardly any does.
    first = path[pc.index(pc.match_substring(path, "\\"), True).as_py()].as_py()
    if "://" in first or (place.parent().child(first)).is_file():
        return path
    return pc.replace_substring(path, "\\", "/")


def _check_has(table: pa.Table, name: str, place: Place) -> None:
    if name not in table.column_names:
        names = ", ".join(table.column_names)[:_MAX_QUOTED]
        raise DataError(f"{place} must have a column {name}; it has {names or 'none'}")


def _check_none_empty(name: str, column: pa.Array, place: Place) -> None:
    empty = pc.index(column, "").as_py()
    if empty >= 0:
        raise DataError(f"{place} must give a {name} in every row; row {empty + 1} has none")


def _check_below(path: pa.Array, place: Place) -> None:
    """Reject paths out of the folder: an untrusted table must not make us read other files."""
    leads_out = pc.index(pc.match_substring_regex(path, r"^/|(^|/)\.\.(/|$)"), True).as_py()
    if leads_out >= 0:
        got = path[leads_out].as_py()[:_MAX_QUOTED]
        raise DataError(f"{place} must name files below its folder; got {got}")


def _checked_splits(column: pa.Array, place: Place) -> pa.Array:
    """Translate to this project's names of splits."""
    encoded = column.dictionary_encode()
    given = encoded.dictionary.to_pylist()
    for name in given:
        if name and split_of_name(name) is None:
            raise DataError(
                f"{place}: split must be train, val or test, or empty; got {name[:_MAX_QUOTED]}"
            )
    names = pa.array([split_of_name(name) or "" for name in given], pa.string())
    return pa.DictionaryArray.from_arrays(encoded.indices, names).cast(pa.string())


def _rooted(path: pa.Array, manifest: Place) -> tuple[Place, pa.Array]:
    """Return the root of the paths, and the paths relative to it."""
    first = path[0].as_py() if len(path) else ""
    scheme, colon, _ = first.partition("://")
    if not colon:
        return manifest.parent(), path
    if not pc.all(pc.starts_with(path, f"{scheme}://")).as_py():
        raise DataError(f"{manifest} must have paths of one kind; some begin with {scheme}://")
    is_same = manifest.has_own_access and manifest.prefix == f"{scheme}://"
    place = manifest if is_same else locate(first)
    return place.at(""), pc.utf8_slice_codeunits(path, len(scheme) + 3)
