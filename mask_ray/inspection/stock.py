"""One pass over a data set: counts of all files, and a row for each readable image."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data
from mask_ray.config import ImageLimits
from mask_ray.data import near_duplicates
from mask_ray.data.inventory import Inventory
from mask_ray.images.decode import ImageError, decode, read_header, resize
from mask_ray.progress import Progress

# Enough for a signature.
_SIDE_PX = 96
_NUM_BAD_FILES_NAMED = 1000


@dataclass
class Stock:
    """Counts over all files, and one row for each readable image."""

    inventory: Inventory
    formats: Counter[tuple[int, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    bad_files: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


def take_stock(dataset: Dataset, num_files: int, limits: ImageLimits) -> Stock:
    """Decode every image, small, and count."""
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
