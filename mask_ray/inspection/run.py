"""What a data set holds, told before anything is trained on it: `report.html` and `report.json`.

One pass decodes every image, small, into flat arrays and counts; a second fetches names and small
pictures of the few images that the report shows. Of a file its path and a few hundred bytes are
held, so millions can be looked at. The files themselves are never changed.
"""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data, reports
from mask_ray.config import DataSettings, ImageLimits, InspectSettings
from mask_ray.data import near_duplicates, sources
from mask_ray.data.inventory import Inventory
from mask_ray.images.decode import ImageError, decode, read_header, resize
from mask_ray.inspection import mislabelled
from mask_ray.progress import Progress, say

_SIDE_PX = 96
_NUM_SHOWN_BY_CLASS = 24
_NUM_GROUPS_SHOWN = 30
_NUM_SHOWN_BY_GROUP = 8
_NUM_BAD_FILES_NAMED = 1000
_NUM_SUSPECTS_SHOWN = 48


@dataclass
class Stock:
    """Counts over all files, and one row for each readable image."""

    inventory: Inventory
    formats: Counter[tuple[int, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    bad_files: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


@dataclass(frozen=True)
class Picture:
    """A file that the report shows."""

    path: str
    label: int
    jpeg: bytes


@dataclass(frozen=True)
class Group:
    """Files that show one picture."""

    files: list[Picture]
    num_files: int


@dataclass(frozen=True)
class Findings:
    """What is told: figures, and the pictures to show for them."""

    class_names: list[str]
    figures: dict[str, Any]
    contact_sheets: list[list[Picture]]
    groups: list[Group]
    conflicts: list[Group]
    suspects: list[tuple[Picture, float]]


def inspect_data(settings: InspectSettings) -> dict[str, Any]:
    """Inspect a data set and write the report. Ray must be running.

    Returns:
        The figures of `report.json`, and where the report is.

    Raises:
        data.DataError: no such data, or fewer than two classes in it.
        weights.WeightsError: the backbone weights cannot be had.
    """
    findings = inspect(settings, settings.backbone_weights)
    settings.output.mkdir(parents=True, exist_ok=True)
    report = settings.output / "report.html"
    report.write_text(html(settings.data, findings))
    content = as_json(findings)
    (settings.output / "report.json").write_text(json.dumps(content, indent=2))
    say(f"report: {report}")
    return findings.figures | {"report": str(report)}


def inspect(settings: DataSettings, backbone_weights: str = "none") -> Findings:
    """Look at every image of `settings.data`.

    Raises: as `run`.
    """
    started = time.perf_counter()
    source = data.open_source(settings, data.LEAST_TASK_CPUS)
    stock = _take_stock(source.dataset, source.num_files, settings)
    inventory = stock.inventory
    groups = replace(inventory, given_groups=np.zeros_like(inventory.given_groups)).groups()
    suspects = mislabelled.find(source.dataset, inventory, settings, backbone_weights)
    chosen = _Chosen.of(inventory, groups, len(source.class_names), suspects)
    pictures = _fetch(source.dataset, chosen.digests(inventory), settings)
    figures = _figures(stock, groups, source.class_names)
    seconds = time.perf_counter() - started
    figures |= {
        "num_suspects": None if suspects is None else len(suspects),
        "seconds": round(seconds, 2),
        "images_per_second": round(source.num_files / seconds, 1),
    }
    return chosen.findings(inventory, source.class_names, figures | _bad(stock), pictures)


def _take_stock(dataset: Dataset, num_files: int, limits: ImageLimits) -> Stock:
    looked_at = data.map_rows(dataset, _look, data.LEAST_TASK_CPUS, limits=limits)
    progress = Progress("inspecting", num_files)
    stock, parts = Stock(Inventory.empty()), []
    for batch in looked_at.iter_batches(batch_size=4096, batch_format="numpy"):
        progress.add(len(batch["label"]))
        is_bad = batch["error"] != ""
        stock.bad.update(_kind(reason) for reason in batch["error"][is_bad])
        named = zip(batch["path"][is_bad], batch["error"][is_bad], strict=True)
        stock.bad_files.update(islice(named, _NUM_BAD_FILES_NAMED - len(stock.bad_files)))
        good = {name: column[~is_bad] for name, column in batch.items()}
        labels = good["label"].tolist()
        stock.formats.update(zip(labels, good["format"].tolist(), strict=True))
        stock.sizes.update(zip(labels, map(_size, good["side"].tolist()), strict=True))
        stock.num_bytes += int(batch["num_bytes"].sum())
        parts.append(Inventory.of_batch(good, data.SPLITS))
    return replace(stock, inventory=Inventory.joined(parts))


def _look(batch: data.Batch, limits: ImageLimits) -> dict[str, Any]:
    looks = [_look_at(encoded, limits) for encoded in batch["bytes"]]
    columns = zip(*looks, strict=True)
    names = ("digest", "num_bytes", "error", "format", "side", "signature")
    looked = {name: np.array(values) for name, values in zip(names, columns, strict=True)}
    looked["error"] = np.where(batch["error"] == "", looked["error"], batch["error"])
    return {name: column for name, column in batch.items() if name != "bytes"} | looked


def _look_at(
    encoded: bytes, limits: ImageLimits
) -> tuple[str, int, str, str, int, NDArray[np.uint8]]:
    digest = data.digest_of(encoded)
    try:
        picture = decode(encoded, limits, at_least_px=_SIDE_PX)
    except ImageError as error:
        nothing = np.zeros(near_duplicates.SIGNATURE_BYTES, np.uint8)
        return digest, len(encoded), str(error), "", 0, nothing
    header = read_header(encoded, limits)
    signature = near_duplicates.signature(resize(picture, _SIDE_PX), *picture.shape[:2])
    return digest, len(encoded), "", header.format_name, max(header.width, header.height), signature


def _kind(reason: str) -> str:
    """A reason without what it says of the one file."""
    return re.sub(r"\d+", "N", re.split(r"[:;]", reason)[0])


def _size(side: int) -> str:
    """The longer side, by powers of two."""
    least = 1 << max(5, side.bit_length() - 1)
    return f"below {2 * least} px" if least == 32 else f"{least} to {2 * least - 1} px"


@dataclass(frozen=True)
class _Chosen:
    """Rows of the inventory that the report shows."""

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
    ) -> "_Chosen":
        """Those of each class with the smallest digests, the largest groups, all kinds of them."""
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
        """Of all of them, in hex."""
        suspects = np.array([row for row, _ in self.suspects], np.int64)
        rows = np.concatenate([*self.sheets, *self.groups, *self.conflicts, suspects])
        return {inventory.digests[row].tobytes().hex() for row in rows}

    def findings(
        self,
        inventory: Inventory,
        class_names: list[str],
        figures: dict[str, Any],
        pictures: dict[tuple[str, int], list[Picture]],
    ) -> Findings:
        """With the pictures of these rows."""

        def of(rows: NDArray[np.int64]) -> list[Picture]:
            keys = dict.fromkeys(
                (inventory.digests[row].tobytes().hex(), int(inventory.labels[row])) for row in rows
            )
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
    """Label by label in turn, so that the first few show all labels."""
    seen: Counter[int] = Counter()
    ranks = []
    for picture in pictures:
        ranks.append(seen[picture.label])
        seen[picture.label] += 1
    order = sorted(range(len(pictures)), key=lambda row: (ranks[row], pictures[row].label))
    return [pictures[row] for row in order]


def _is_mixed(labels: NDArray[np.int32], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each row, whether its group has several labels."""
    mixed = np.zeros(len(groups), bool)
    mixed[groups[labels != labels[groups]]] = True
    return mixed[groups]


def _largest(groups: NDArray[np.int64], wanted: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    roots, sizes = np.unique(groups[wanted], return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:_NUM_GROUPS_SHOWN]
    return [np.flatnonzero(groups == roots[i]) for i in order if sizes[i] > 1]


def _fetch(
    dataset: Dataset, digests: set[str], limits: ImageLimits
) -> dict[tuple[str, int], list[Picture]]:
    """The first files of these digests by digest and label, as many as a group shows.

    It takes one more look at all bytes.
    """
    fetched = data.map_rows(dataset, _picture, data.LEAST_TASK_CPUS, digests=digests, limits=limits)
    pictures: dict[tuple[str, int], list[Picture]] = {}
    for row in fetched.iter_rows():
        alike = pictures.setdefault((row["digest"], row["label"]), [])
        if len(alike) < _NUM_SHOWN_BY_GROUP:
            alike.append(Picture(row["path"], row["label"], row["jpeg"]))
    return pictures


def _picture(batch: data.Batch, digests: set[str], limits: ImageLimits) -> dict[str, Any]:
    """Rows of these digests, of the same digest and label no more than are shown."""
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
    """The picture within a square, its sides in proportion."""
    picture = decode(encoded, limits, at_least_px=_SIDE_PX)
    step = max(1, max(picture.shape[:2]) // (2 * _SIDE_PX))
    return reports.jpeg(np.ascontiguousarray(picture[::step, ::step]))


def _figures(stock: Stock, groups: NDArray[np.int64], class_names: list[str]) -> dict[str, Any]:
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


def _bad(stock: Stock) -> dict[str, Any]:
    return {
        "num_unreadable": stock.bad.total(),
        "unreadable": dict(stock.bad.most_common()),
        "unreadable_files": stock.bad_files,
    }


def _by_class(
    counts: Counter[tuple[int, str]], class_names: list[str]
) -> dict[str, dict[str, int]]:
    """Counts by name and class."""
    names = sorted(
        {name for _, name in counts}, key=lambda n: [int(d) for d in re.findall(r"\d+", n)]
    )
    return {
        name: {class_name: counts[label, name] for label, class_name in enumerate(class_names)}
        for name in names
    }


def as_json(findings: Findings) -> dict[str, Any]:
    """The figures and the names of what the report shows."""

    def names(groups: list[Group]) -> list[dict[str, Any]]:
        return [
            {"num_files": group.num_files, "files": [_named(p, findings) for p in group.files]}
            for group in groups
        ]

    return findings.figures | {
        "largest_groups": names(findings.groups),
        "conflicts": names(findings.conflicts),
        "suspects": [
            _named(picture, findings) | {"confidence_in_label": round(confidence, 4)}
            for picture, confidence in findings.suspects
        ],
    }


def _named(picture: Picture, findings: Findings) -> dict[str, Any]:
    return {"path": picture.path, "label": findings.class_names[picture.label]}


def html(source: str, findings: Findings) -> str:
    """The report: one file that needs no other."""
    return reports.render(
        "inspection.html.j2",
        title="What the data holds",
        subtitle=sources.shown(source),
        findings=findings,
        figures=findings.figures,
        uri=reports.data_uri,
    )
