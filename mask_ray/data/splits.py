"""Put each image into a split, by its content.

The split follows from a hash of the file's content, so that adding files moves no other file.
Images of one picture form a group, and the group's split follows from the smallest digest in it.
An added file can only move others that show the same picture, and only to its own split.

Splits are stratified in expectation, because hashes are uniform within every class. Exact shares
would need the sorted hashes of all files of a class, and each added file would then move others
across the boundaries, for example from train to test. With n groups in a class, the share p has a
standard deviation of sqrt(p (1 - p) / n).
"""

import csv
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mask_ray.config import DataSettings, ImageLimits, SplitName, home
from mask_ray.data import near_duplicates
from mask_ray.data.inventory import NOT_GIVEN, Inventory
from mask_ray.data.sources import DataError, Labelled
from mask_ray.data.sources.location import reached
from mask_ray.files import PRIVATE_FILE, appearing_file, make_private, safe_cell
from mask_ray.images.decode import decode, resize
from mask_ray.images.errors import ImageError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)

# In place of a split, for images that show a picture of the fixed test set.
LEFT_OUT = "left out"
_LEFT_OUT_INDEX = len(SPLITS)

# Side of the pictures whose signatures are computed here. Training uses its own image size.
_SIGNED_PX = 128

# How many conflicts a message names.
_NUM_SHOWN = 20

# Number of files in memory at a time.
_FILES_TOGETHER = 256

_NAMES = (*SPLITS, LEFT_OUT)
_TRAIN, _VAL, _TEST = (SPLITS.index(name) for name in ("train", "val", "test"))


class SplitConflictError(ValueError):
    """The source gives different splits to files that must share one.

    Args:
        groups: Rows and given splits of the files of each such picture or group, one for each
            split.
        are_copies: Whether those of each are copies of one file.
    """

    def __init__(
        self, groups: Sequence[Sequence[tuple[int, SplitName]]], are_copies: Sequence[bool]
    ) -> None:
        super().__init__(f"{len(groups)} groups of files are given different splits")
        self.groups = groups
        self.are_copies = are_copies

    def describe(self, names: Sequence[str]) -> str:
        """Write the message for users.

        Args:
            names: Name of the file of each row.
        """
        described = zip(self.groups[:_NUM_SHOWN], self.are_copies, strict=False)
        shown = [self._described(group, is_copy, names) for group, is_copy in described]
        if len(self.groups) > _NUM_SHOWN:
            shown.append(
                f"and {len(self.groups) - _NUM_SHOWN} more, all of them in {self._saved(names)}"
            )
        return (
            f"files of one group or one picture must be given one split; {'; '.join(shown)}. "
            "--resolve-conflicts drop uses only those of its files that are in test, or in val if "
            "none is in test; --resolve-conflicts move puts all of them there"
        )

    @staticmethod
    def _described(
        group: Sequence[tuple[int, SplitName]], is_copy: bool, names: Sequence[str]
    ) -> str:
        if is_copy:
            files = " and ".join(names[row] for row, _ in group)
            return f"copies of one file {files} are given {' and '.join(s for _, s in group)}"
        (row, split), *others = group
        more = ", ".join(f"{names[other]} {given}" for other, given in others)
        return f"{names[row]} is given {split}, {more}"

    def _saved(self, names: Sequence[str]) -> Path:
        """Write all of them into a file."""
        path = make_private(home()) / "split_conflicts.csv"
        with (
            appearing_file(path, mode=PRIVATE_FILE) as unfinished,
            unfinished.open("w", newline="", errors="surrogateescape") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(("conflict", "split", "path"))
            for number, group in enumerate(self.groups, 1):
                rows.writerows((number, split, safe_cell(names[row])) for row, split in group)
        return path


@dataclass(frozen=True)
class Assignment:
    """The split of every image.

    Args:
        indices: For each row of the inventory, an index into `SPLITS`, or len(SPLITS) if the
            image is left out.
        groups: For each row, the first row of its group.
        moved: Split by digest, in hex, of files whose split does not follow from their own
            content. The key of a file that `resolve_conflicts` drops also names the split that it
            was given: a copy with the same digest may stay in another split. Small.
        num_dropped: Number of images left out because others of their group were given another
            split.
        num_resolved: Number of images that were moved for the same reason.
        filled: Splits that the source gives nothing, and that got a share of its train split.
    """

    indices: NDArray[np.int8]
    groups: NDArray[np.int64]
    moved: dict[str, str]
    num_dropped: int = 0
    num_resolved: int = 0
    filled: tuple[SplitName, ...] = ()

    @property
    def num_left_out(self) -> int:
        """Number of images left out because the fixed test set has their picture."""
        return int((self.indices == _LEFT_OUT_INDEX).sum()) - self.num_dropped

    @property
    def num_grouped(self) -> int:
        """Number of images that share a picture, or a given group, with another."""
        _, sizes = np.unique(self.groups, return_counts=True)
        return int(sizes[sizes > 1].sum())


def split_of(digest: str, settings: DataSettings) -> SplitName:
    """Return the split of a file by its content alone: without a group or a given split.

    Args:
        digest: SHA-256 of the file's bytes, in hex.
        settings: Shares of the splits. With `test_data`, the test share is trained on.
    """
    prefix = np.array([int(digest[:16], 16)], np.uint64)
    return SPLITS[_places_to_splits(prefix, settings)[0]]


def of_files(labelled: Labelled, settings: DataSettings) -> pa.Table:
    """Read files and put them into splits, without Ray. For up to some thousand files.

    Args:
        labelled: Files and their labels.
        settings: Limits of images, and shares of the splits.

    Returns the readable rows of `labelled.files`, with a further column `split`.

    Raises:
        DataError: a store does not answer, or files of one group are given different splits.
    """
    parts: list[Inventory | None] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(labelled.files), _FILES_TOGETHER):
            files = labelled.files.slice(start, _FILES_TOGETHER)
            contents = reached("data", partial(_read, labelled, files))
            rows = zip(files.to_pylist(), contents, strict=True)
            parts += threads.map(partial(_stock, limits=settings), rows)
    readable = labelled.files.filter(pa.array([part is not None for part in parts], pa.bool_()))
    inventory = Inventory.joined(part for part in parts if part is not None)
    try:
        assigned = assign(inventory, settings).indices
    except SplitConflictError as error:
        raise DataError(error.describe(labelled.reader.names(readable))) from error
    return readable.append_column(
        "split", pa.array([_NAMES[index] for index in assigned], pa.string())
    )


def _read(labelled: Labelled, files: pa.Table) -> list[tuple[bytes, str]]:
    return list(labelled.reader.contents(files))


def _stock(row: tuple[dict[str, Any], tuple[bytes, str]], limits: ImageLimits) -> Inventory | None:
    file, (encoded, _) = row
    try:
        picture = decode(encoded, limits, at_least_px=_SIGNED_PX)
    except ImageError:
        return None
    signature = near_duplicates.signature(resize(picture, _SIGNED_PX), *picture.shape[:2])
    batch = {name: np.array([file[name]]) for name in ("label", "given_split", "given_group")}
    digest = np.array([hashlib.sha256(encoded).hexdigest()])
    return Inventory.of_batch(batch | {"digest": digest, "signature": signature[None]}, SPLITS)


def assign(inventory: Inventory, settings: DataSettings) -> Assignment:
    """Put each image into a split, and all images of a group into the same one.

    Raises:
        SplitConflictError: the source gives different splits to files of one group.
    """
    groups = inventory.groups()
    prefixes = inventory.prefixes()
    smallest = prefixes.copy()
    np.minimum.at(smallest, groups, prefixes)
    indices = _places_to_splits(smallest[groups], settings)
    by_content = indices.copy()
    differs = _put_where_given(indices, inventory, groups, settings)
    filled = _fill_from_train(indices, by_content, inventory, settings)
    is_dropped = differs & (settings.resolve_conflicts == "drop")
    indices[is_dropped] = _LEFT_OUT_INDEX
    _hold_out(indices, inventory, groups)
    moved = indices != _places_to_splits(prefixes, settings)
    moved &= ~inventory.held_out
    keys = inventory.hex_digests(moved)
    for place, row in enumerate(np.flatnonzero(moved)):
        if is_dropped[row]:
            keys[place] = dropped_key(keys[place], SPLITS[inventory.given_splits[row]])
    names = (_NAMES[index] for index in indices[moved])
    num_differing = int(differs.sum())
    num_dropped = int((is_dropped & (indices == _LEFT_OUT_INDEX)).sum())
    return Assignment(
        indices,
        groups,
        dict(zip(keys, names, strict=True)),
        num_dropped,
        0 if num_dropped else num_differing,
        filled,
    )


def dropped_key(digest: str, given_split: str) -> str:
    """Return the key of `Assignment.moved` of a file that is dropped for its given split."""
    return f"{digest} {given_split}"


def _places_to_splits(prefixes: NDArray[np.uint64], settings: DataSettings) -> NDArray[np.int8]:
    places = _mixed(prefixes) / 2.0**64
    held_out = settings.test_fraction + settings.val_fraction
    splits = np.where(places < held_out, _VAL, _TRAIN)
    test = _TRAIN if settings.test_data else _TEST
    return np.where(places < settings.test_fraction, test, splits).astype(np.int8)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Make values uniform again.

    The smallest of several digests is not uniform: without this, all large groups would be in the
    test split. The finaliser of SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195.
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _put_where_given(
    indices: NDArray[np.int8],
    inventory: Inventory,
    groups: NDArray[np.int64],
    settings: DataSettings,
) -> NDArray[np.bool_]:
    """Put groups into the split that is given to them: of several, into the most held-out one.

    Returns whether each file was given another split than its group got, bool of shape (n,).
    """
    splits = inventory.given_splits
    given = np.flatnonzero((splits != NOT_GIVEN) & ~inventory.held_out)
    of_group = np.full(len(inventory), NOT_GIVEN, np.int8)
    # The order of `SPLITS`: train, val, test.
    np.maximum.at(of_group, groups[given], splits[given])
    differs = np.zeros(len(inventory), bool)
    differs[given] = of_group[groups[given]] != splits[given]
    if differs.any() and settings.resolve_conflicts == "refuse":
        raise _conflict(inventory, groups, given, differs)
    is_given = of_group[groups] != NOT_GIVEN
    indices[is_given] = of_group[groups][is_given]
    return differs


def _conflict(
    inventory: Inventory,
    groups: NDArray[np.int64],
    given: NDArray[np.int64],
    differs: NDArray[np.bool_],
) -> SplitConflictError:
    conflicting = np.zeros(len(inventory), bool)
    conflicting[groups[differs]] = True
    by_group: dict[int, dict[int, int]] = {}
    for row in given[conflicting[groups[given]]].tolist():
        by_group.setdefault(int(groups[row]), {}).setdefault(int(inventory.given_splits[row]), row)
    digests = inventory.digests
    return SplitConflictError(
        [
            [(row, SPLITS[split]) for split, row in sorted(rows.items())]
            for rows in by_group.values()
        ],
        [len(np.unique(digests[[*rows.values()]], axis=0)) == 1 for rows in by_group.values()],
    )


def _fill_from_train(
    indices: NDArray[np.int8],
    by_content: NDArray[np.int8],
    inventory: Inventory,
    settings: DataSettings,
) -> tuple[SplitName, ...]:
    """Give val or test a share of the given train split, if the source gives them nothing.

    Sets are often published with train and test alone.
    """
    own = ~inventory.held_out
    from_train = own & (inventory.given_splits == _TRAIN) & (indices == _TRAIN)
    if not from_train.any():
        return ()
    wanted = (_VAL,) if settings.test_data else (_VAL, _TEST)
    missing = [split for split in wanted if not (own & (indices == split)).any()]
    # A group may hold files that are given nothing: all of it goes together.
    moves = (indices == _TRAIN) & own & np.isin(by_content, missing)
    indices[moves] = by_content[moves]
    return tuple(SPLITS[split] for split in missing)


def _hold_out(indices: NDArray[np.int8], inventory: Inventory, groups: NDArray[np.int64]) -> None:
    """Make the fixed test set the test split, and leave out other images of its pictures."""
    is_seen = np.zeros(len(inventory), bool)
    is_seen[groups[inventory.held_out]] = True
    indices[is_seen[groups]] = _LEFT_OUT_INDEX
    indices[inventory.held_out] = _TEST
