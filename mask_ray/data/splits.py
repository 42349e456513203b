"""Which split each image is in.

An image's place is a hash of its content, so that adding files moves no other file, and images of
one picture have the place of their group: the hash of the smallest digest in it. Only an added
file that shows a picture already there can move others, and those only to where it is itself.

Splits are stratified in expectation: places are uniform within every class. Exact shares would
need the sorted places of all files of a class, and each added file would then move others over
the boundaries, from train to test among them. With n groups in a class, a share p is met within
sqrt(p (1 - p) / n), one standard deviation.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import DataSettings, ImageLimits, SplitName
from mask_ray.data import near_duplicates
from mask_ray.data.inventory import NOT_GIVEN, Inventory
from mask_ray.images.decode import ImageError, decode, resize

SPLITS: tuple[SplitName, ...] = get_args(SplitName)

# Where images go that show a picture of the fixed test set: nowhere.
LEFT_OUT = "left out"
_LEFT_OUT_INDEX = len(SPLITS)

# The side of pictures whose signatures are taken here; those of training are of its image size.
_SIGNED_PX = 128

_NAMES = (*SPLITS, LEFT_OUT)
_TRAIN, _VAL, _TEST = (SPLITS.index(name) for name in ("train", "val", "test"))


class SplitConflictError(ValueError):
    """Files that must share a split are given different ones.

    Args:
        digests: Of two such files, in hex.
        splits: What they are given.
    """

    def __init__(self, digests: tuple[str, str], splits: tuple[str, str]) -> None:
        super().__init__(f"{digests} are one group, but given as {splits}")
        self.digests = digests
        self.splits = splits


@dataclass(frozen=True)
class Assignment:
    """The split of every image.

    Args:
        indices: For each row of the inventory, of `SPLITS`; or one more, for those left out.
        groups: The first row of each row's group.
        moved: Split by digest, in hex, where it is not that of the file's own content. Small.
    """

    indices: NDArray[np.int8]
    groups: NDArray[np.int64]
    moved: dict[str, str]

    @property
    def num_left_out(self) -> int:
        """Images left out since the fixed test set has their picture."""
        return int((self.indices == _LEFT_OUT_INDEX).sum())

    @property
    def num_grouped(self) -> int:
        """Images that share their picture, or their given group, with another."""
        _, sizes = np.unique(self.groups, return_counts=True)
        return int(sizes[sizes > 1].sum())


def split_of(digest: str, settings: DataSettings) -> SplitName:
    """The split of a file that is in no group and is given none, by its content alone.

    Args:
        digest: SHA-256 of the file's bytes, in hex.
        settings: Its `test_fraction` and `val_fraction` are the shares of those splits. With
            `test_data`, the share of the test split is trained on.
    """
    prefix = np.array([int(digest[:16], 16)], np.uint64)
    return SPLITS[_places_to_splits(prefix, settings)[0]]


def of_files(
    by_class: Mapping[str, Sequence[Path]], settings: DataSettings
) -> Iterator[tuple[Path, int, SplitName]]:
    """The readable of these files, their labels and splits, without Ray: for folders of thousands.

    Args:
        by_class: Files by class name, in the order of labels.
        settings: Limits and shares.
    """
    files = [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
    with ThreadPoolExecutor() as threads:
        stocked = list(threads.map(partial(_stock, limits=settings), files))
    assigned = assign(Inventory.joined(part for part in stocked if part), settings).indices
    readable = (file for file, part in zip(files, stocked, strict=True) if part)
    for (path, label), index in zip(readable, assigned, strict=True):
        yield path, label, SPLITS[index]


def _stock(file: tuple[Path, int], limits: ImageLimits) -> Inventory | None:
    path, label = file
    encoded = path.read_bytes()
    try:
        picture = decode(encoded, limits, at_least_px=_SIGNED_PX)
    except ImageError:
        return None
    signature = near_duplicates.signature(resize(picture, _SIGNED_PX), *picture.shape[:2])
    digest = hashlib.sha256(encoded).hexdigest()
    row = {"label": np.array([label]), "digest": np.array([digest]), "signature": signature[None]}
    return Inventory.of_batch(row, SPLITS)


def assign(inventory: Inventory, settings: DataSettings) -> Assignment:
    """Put each image into a split, and all of a group into one.

    Raises:
        SplitConflictError: files of one group are given different splits.
    """
    groups = inventory.groups()
    prefixes = inventory.prefixes()
    smallest = prefixes.copy()
    np.minimum.at(smallest, groups, prefixes)
    indices = _places_to_splits(smallest[groups], settings)
    _put_where_given(indices, inventory, groups)
    _hold_out(indices, inventory, groups)
    moved = indices != _places_to_splits(prefixes, settings)
    moved &= ~inventory.held_out
    return Assignment(indices, groups, _by_digest(inventory, indices, moved))


def _places_to_splits(prefixes: NDArray[np.uint64], settings: DataSettings) -> NDArray[np.int8]:
    places = _mixed(prefixes) / 2.0**64
    held_out = settings.test_fraction + settings.val_fraction
    splits = np.where(places < held_out, _VAL, _TRAIN)
    test = _TRAIN if settings.test_data else _TEST
    return np.where(places < settings.test_fraction, test, splits).astype(np.int8)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Uniform again: the smallest of several digests is not, and large groups would all be tests.

    The finaliser of SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195.
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _put_where_given(
    indices: NDArray[np.int8], inventory: Inventory, groups: NDArray[np.int64]
) -> None:
    given = np.flatnonzero((inventory.given_splits != NOT_GIVEN) & ~inventory.held_out)
    if not len(given):
        return
    of_group = np.full(len(inventory), NOT_GIVEN, np.int8)
    of_group[groups[given]] = inventory.given_splits[given]
    differs = of_group[groups[given]] != inventory.given_splits[given]
    if differs.any():
        raise _conflict(inventory, groups, given, int(given[differs][0]))
    is_given = of_group[groups] != NOT_GIVEN
    indices[is_given] = of_group[groups][is_given]


def _conflict(
    inventory: Inventory, groups: NDArray[np.int64], given: NDArray[np.int64], row: int
) -> SplitConflictError:
    splits = inventory.given_splits
    other = next(r for r in given if groups[r] == groups[row] and splits[r] != splits[row])
    digests = inventory.digests[row].tobytes().hex(), inventory.digests[other].tobytes().hex()
    return SplitConflictError(digests, (SPLITS[splits[row]], SPLITS[splits[other]]))


def _hold_out(indices: NDArray[np.int8], inventory: Inventory, groups: NDArray[np.int64]) -> None:
    """The fixed test set is the test split; nothing that shows its pictures is trained on."""
    is_seen = np.zeros(len(inventory), bool)
    is_seen[groups[inventory.held_out]] = True
    indices[is_seen[groups]] = _LEFT_OUT_INDEX
    indices[inventory.held_out] = _TEST


def _by_digest(
    inventory: Inventory, indices: NDArray[np.int8], rows: NDArray[np.bool_]
) -> dict[str, str]:
    digests = (digest.tobytes().hex() for digest in inventory.digests[rows])
    return dict(zip(digests, (_NAMES[index] for index in indices[rows]), strict=True))
