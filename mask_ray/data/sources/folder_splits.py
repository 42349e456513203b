"""Tell the folders of splits from those of classes.

Data sets are published as `train/cats/1.jpg`, and sometimes as `cats/train/1.jpg`. If all folders
of a level have names of splits, they give the splits. If only some have, nobody can say what they
are, and the set is refused.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from mask_ray.config import SplitName
from mask_ray.data.sources.listing import Listing, of_columns
from mask_ray.data.sources.location import DataError
from mask_ray.images.folders import first_names, is_junk

_SPELLED: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev"),
    "test": ("test", "testing", "tst"),
}
_SPELLINGS = {name: split for split, names in _SPELLED.items() for name in names}
# As in train_set, Training Data, val2017, test-images, 01_train.
_AROUND = re.compile(r"^\d+(?=[a-z])|(set|data|dataset|images|imgs|split|photos)?s?\d*$")
_SIGNS = re.compile(r"[\s._()-]+")
# How many names of folders an error shows.
_NUM_SHOWN = 8


def split_of_name(name: str) -> SplitName | None:
    """Return the split of a name in any usual spelling; None if it is no name of a split."""
    plain = _SIGNS.sub("", name.casefold())
    return _SPELLINGS.get(plain) or _SPELLINGS.get(_AROUND.sub("", plain))


def class_folders(root: Path) -> list[str]:
    """Return the names of classes in a local folder, sorted, also of those without files."""
    names = _folders(root)
    if names and all(map(split_of_name, names)):
        names = [name for split in names for name in _folders(root / split)] or names
    return sorted({name.strip() for name in names})


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.is_dir() and not is_junk(path.name)]


@dataclass
class _Level:
    """The folders of one level.

    Args:
        names: Those that have files, in them or below.
        deep: Those that have folders.
        has_files: Whether files stand beside them, below the level above.
    """

    names: set[str] = field(default_factory=set)
    deep: set[str] = field(default_factory=set)
    has_files: bool = False

    @property
    def splits(self) -> dict[str, SplitName]:
        return {name: split for name in self.names if (split := split_of_name(name))}

    @property
    def are_all_splits(self) -> bool:
        return bool(self.names) and len(self.splits) == len(self.names)


def classes_and_splits(listing: Listing) -> Listing:
    """Read classes, and the splits that folders give, from the paths of a folder's files.

    Raises:
        DataError: some folders have names of splits, and others have not.
    """
    paths = listing.files["path"].to_pylist()
    parts = [path.split("/", 2) for path in paths]
    first, second = _levels(parts)
    if first.are_all_splits and (len(first.names) > 1 or first.deep):
        _check_all_deep(first, listing)
        given = first.splits if len(first.names) > 1 else {}
        classes = [part[1].strip() if len(part) > 2 else "" for part in parts]
        splits = [given.get(part[0], "") if len(part) > 2 else "" for part in parts]
        return _replaced(listing, paths, classes, splits)
    _check_none_deep(first, listing)
    classes = [part[0].strip() if len(part) > 1 else "" for part in parts]
    if len({*second.splits.values()}) > 1:
        _check_all_named(second, listing)
        given = second.splits
        splits = [given[part[1]] if len(part) > 2 else "" for part in parts]
        return _replaced(listing, paths, classes, splits)
    return _replaced(listing, paths, classes, None)


def _levels(parts: Iterable[Sequence[str]]) -> tuple[_Level, _Level]:
    first, second = _Level(), _Level()
    for part in parts:
        if len(part) > 1:
            first.names.add(part[0])
            second.has_files |= len(part) == 2
        if len(part) > 2:
            first.deep.add(part[0])
            second.names.add(part[1])
    return first, second


def _replaced(
    listing: Listing, paths: list[str], classes: list[str], splits: list[str] | None
) -> Listing:
    given = None if splits is None else pa.array(splits, pa.string())
    return Listing(listing.root, of_columns(paths, classes, given), listing.skipped)


def _check_all_deep(level: _Level, listing: Listing) -> None:
    flat = level.names - level.deep
    if flat:
        raise DataError(
            f"{listing.root} has the splits {_listed(level.names)}, which must hold one folder for "
            f"each class; {_listed(flat)} hold files only. Sort them into folders, or give a "
            "manifest with the columns path, label and split"
        )


def _check_none_deep(level: _Level, listing: Listing) -> None:
    """Reject folders of splits beside others. A class `train` beside `car` has no folders."""
    splits = level.splits
    is_mixed = bool(splits.keys() & level.deep and level.names - splits.keys())
    if is_mixed or len({*splits.values()}) > 1:
        raise DataError(
            f"{listing.root} has folders that are splits by their names ({_listed(splits)}) beside "
            f"others ({_listed(level.names - splits.keys())}). Move or rename the ones or the "
            "others, or give a manifest with the columns path, label and split"
        )


def _check_all_named(level: _Level, listing: Listing) -> None:
    others = level.names - level.splits.keys()
    if others or level.has_files:
        raise DataError(
            f"{listing.root} has classes with folders that are splits by their names "
            f"({_listed(level.splits)}) beside {_listed(others) or 'files'}. Move these into a "
            "split, or give a manifest with the columns path, label and split"
        )


def _listed(names: Iterable[str]) -> str:
    return first_names(sorted(names), _NUM_SHOWN)
