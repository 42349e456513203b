"""Select what an inspection reports: figures, and pictures that illustrate them."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data, reports
from mask_ray.config import ImageLimits
from mask_ray.data.inventory import Inventory
from mask_ray.images.decode import decode
from mask_ray.inspection.stock import Stock

_SIDE_PX = 96
_NUM_SHOWN_BY_CLASS = 24
_NUM_GROUPS_SHOWN = 30
_NUM_SHOWN_BY_GROUP = 8
_NUM_SUSPECTS_SHOWN = 48


@dataclass(frozen=True)
class Picture:
    """A file that the report shows, as a thumbnail."""

    path: str
    label: int
    jpeg: bytes


@dataclass(frozen=True)
class Group:
    """Files that show one picture: some of them, and the number of all."""

    files: list[Picture]
    num_files: int


@dataclass(frozen=True)
class Findings:
    """The content of the report.

    Args:
        class_names: Class names, in the order of labels.
        figures: Counts, as in `report.json`.
        contact_sheets: Some pictures of each class.
        groups: The largest groups of copies and near-copies under one label.
        conflicts: The largest groups under several labels.
        suspects: Pictures whose label is probably wrong, and the probability of that label.
    """

    class_names: list[str]
    figures: dict[str, Any]
    contact_sheets: list[list[Picture]]
    groups: list[Group]
    conflicts: list[Group]
    suspects: list[tuple[Picture, float]]


@dataclass(frozen=True)
class Chosen:
    """Rows of the inventory that the report shows, as in `Findings`."""

    sheets: list[NDArray[np.int64]]
    groups: list[NDArray[np.int64]]
    conflicts: list[NDArray[np.int64]]
    suspects: list[tuple[int, float]]

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        groups: NDArray[np.int64],
        num_classes: int,
        suspects: list[tuple[int, float]] | None,
    ) -> "Chosen":
        """Choose images with the smallest digests in each class, and the largest groups."""
        prefixes = inventory.prefixes()
        sheets = []
        for label in range(num_classes):
            rows = np.flatnonzero(inventory.labels == label)
            sheets.append(rows[np.argsort(prefixes[rows])[:_NUM_SHOWN_BY_CLASS]])
        mixed = _is_mixed(inventory.labels, groups)
        return cls(
            sheets,
            _largest(groups, ~mixed),
            _largest(groups, mixed),
            (suspects or [])[:_NUM_SUSPECTS_SHOWN],
        )

    def digests(self, inventory: Inventory) -> set[str]:
        """Return the digests of all chosen rows, in hex."""
        suspects = np.array([row for row, _ in self.suspects], np.int64)
        rows = np.concatenate([*self.sheets, *self.groups, *self.conflicts, suspects])
        return set(inventory.hex_digests(rows))

    def findings(
        self,
        inventory: Inventory,
        class_names: list[str],
        figures: dict[str, Any],
        pictures: dict[tuple[str, int], list[Picture]],
    ) -> Findings:
        """Combine the figures with the pictures of the chosen rows."""

        def of(rows: NDArray[np.int64]) -> list[Picture]:
            labels = inventory.labels[rows].tolist()
            keys = dict.fromkeys(zip(inventory.hex_digests(rows), labels, strict=True))
            return [picture for key in keys for picture in pictures[key]]

        def grouped(groups: list[NDArray[np.int64]]) -> list[Group]:
            return [
                Group(_alternating(of(rows))[:_NUM_SHOWN_BY_GROUP], len(rows)) for rows in groups
            ]

        return Findings(
            class_names,
            figures,
            [of(rows)[:_NUM_SHOWN_BY_CLASS] for rows in self.sheets],
            grouped(self.groups),
            grouped(self.conflicts),
            [(of(np.array([row]))[0], confidence) for row, confidence in self.suspects],
        )


def _alternating(pictures: list[Picture]) -> list[Picture]:
    """Order by label in turn, so that the first few show all labels."""
    seen: Counter[int] = Counter()
    ranks = []
    for picture in pictures:
        ranks.append(seen[picture.label])
        seen[picture.label] += 1
    order = sorted(range(len(pictures)), key=lambda row: (ranks[row], pictures[row].label))
    return [pictures[row] for row in order]


def _is_mixed(labels: NDArray[np.int32], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each row whether its group has several labels."""
    mixed = np.zeros(len(groups), bool)
    mixed[groups[labels != labels[groups]]] = True
    return mixed[groups]


def _largest(groups: NDArray[np.int64], wanted: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    roots, sizes = np.unique(groups[wanted], return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:_NUM_GROUPS_SHOWN]
    return [np.flatnonzero(groups == roots[i]) for i in order if sizes[i] > 1]


def fetch_pictures(
    dataset: Dataset, digests: set[str], limits: ImageLimits
) -> dict[tuple[str, int], list[Picture]]:
    """Read all files again, and make thumbnails of those with these digests.

    Returns pictures by digest and label, at most as many as the report shows of a group.
    """
    fetched = data.map_rows(dataset, _picture, data.spare_cpus(), digests=digests, limits=limits)
    pictures: dict[tuple[str, int], list[Picture]] = {}
    for row in fetched.iter_rows():
        alike = pictures.setdefault((row["digest"], row["label"]), [])
        if len(alike) < _NUM_SHOWN_BY_GROUP:
            alike.append(Picture(row["path"], row["label"], row["jpeg"]))
    return pictures


def _picture(batch: data.Batch, digests: set[str], limits: ImageLimits) -> dict[str, Any]:
    """Select rows with these digests, and make their thumbnails."""
    keys = list(zip(map(data.digest_of, batch["bytes"]), batch["label"].tolist(), strict=True))
    rows: list[int] = []
    copies: Counter[tuple[str, int]] = Counter()
    for row, key in enumerate(keys):
        copies[key] += 1
        if key[0] in digests and copies[key] <= _NUM_SHOWN_BY_GROUP:
            rows.append(row)
    return {
        "path": batch["path"][rows],
        "label": batch["label"][rows],
        "digest": np.array([keys[row][0] for row in rows], str),
        "jpeg": np.array([_thumbnail(batch["bytes"][row], limits) for row in rows], object),
    }


def _thumbnail(encoded: bytes, limits: ImageLimits) -> bytes:
    """Shrink a picture, and keep its proportions."""
    picture = decode(encoded, limits, at_least_px=_SIDE_PX)
    step = max(1, max(picture.shape[:2]) // (2 * _SIDE_PX))
    return reports.jpeg(np.ascontiguousarray(picture[::step, ::step]))


def count(stock: Stock, groups: NDArray[np.int64], class_names: list[str]) -> dict[str, Any]:
    """Count images, classes, formats, sizes and copies."""
    inventory = stock.inventory
    keys = inventory.prefixes()
    _, sizes = np.unique(groups, return_counts=True)
    by_content = np.unique(np.stack([keys, inventory.labels.astype(np.uint64)]), axis=1)
    mixed = _is_mixed(inventory.labels, groups)
    counts = np.bincount(inventory.labels, minlength=len(class_names))
    return {
        "num_images": len(inventory),
        "num_bytes": stock.num_bytes,
        "classes": dict(zip(class_names, counts.tolist(), strict=True)),
        "formats": _by_class(stock.formats, class_names),
        "sizes": _by_class(stock.sizes, class_names),
        "num_exact_copies": len(inventory) - len(np.unique(keys)),
        "num_near_groups": int((sizes > 1).sum()),
        "num_images_in_groups": int(sizes[sizes > 1].sum()),
        "num_files_under_two_labels": by_content.shape[1] - len(np.unique(keys)),
        "num_groups_under_two_labels": len(np.unique(groups[mixed])),
    }


def unreadable(stock: Stock) -> dict[str, Any]:
    """Count unreadable files by reason, and name them."""
    return {
        "num_unreadable": stock.bad.total(),
        "unreadable": dict(stock.bad.most_common()),
        "unreadable_files": stock.bad_files,
    }


def _by_class(
    counts: Counter[tuple[int, str]], class_names: list[str]
) -> dict[str, dict[str, int]]:
    """Arrange counts by name and class."""
    names = sorted(
        {name for _, name in counts}, key=lambda n: [int(d) for d in re.findall(r"\d+", n)]
    )
    return {
        name: {class_name: counts[label, name] for label, class_name in enumerate(class_names)}
        for name in names
    }
