"""Count all files of a data set, and make an inventory of its readable images, in one pass."""

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
from mask_ray.images.decode import decode, read_header, resize
from mask_ray.images.errors import ImageError
from mask_ray.progress import Progress
from mask_ray.stalls import watched

_NUM_BAD_FILES_NAMED = 1000


@dataclass
class Stock:
    """Counts of all files, and an inventory of readable images.

    Args:
        inventory: One row for each readable image.
        formats: Number of images by label and format.
        sizes: Number of images by label and range of the longer side.
        bad: Number of unreadable files by reason.
        bad_files: Error by path, of the first 1,000 unreadable files.
        num_bytes: Size of all files.
    """

    inventory: Inventory
    formats: Counter[tuple[int, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    bad_files: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


def take_stock(dataset: Dataset, num_files: int, limits: ImageLimits, side_px: int) -> Stock:
    """Decode every image, and count.

    Args:
        dataset: Rows of files.
        num_files: Number of rows.
        limits: Limits of the decoder.
        side_px: Size at which pictures are compared: as in the training, so that both find the
            same groups.
    """
    examined = data.map_rows(
        dataset, _examine_batch, data.spare_cpus(), limits=limits, side_px=side_px
    )
    progress = Progress("inspecting", num_files)
    stock, parts = Stock(Inventory.empty()), []
    batches = examined.iter_batches(batch_size=4096, batch_format="numpy")
    for batch in watched(iter(batches), "inspecting"):
        progress.add(len(batch["label"]))
        is_bad = batch["error"] != ""
        stock.bad.update(_without_details(reason) for reason in batch["error"][is_bad])
        named = zip(batch["path"][is_bad], batch["error"][is_bad], strict=True)
        stock.bad_files.update(islice(named, _NUM_BAD_FILES_NAMED - len(stock.bad_files)))
        good = {name: column[~is_bad] for name, column in batch.items()}
        labels = good["label"].tolist()
        stock.formats.update(zip(labels, good["format"].tolist(), strict=True))
        stock.sizes.update(zip(labels, map(_size_range, good["side"].tolist()), strict=True))
        stock.num_bytes += int(batch["num_bytes"].sum())
        parts.append(Inventory.of_batch(good, data.SPLITS))
    return replace(stock, inventory=Inventory.joined(parts))


def _examine_batch(batch: data.Batch, limits: ImageLimits, side_px: int) -> dict[str, Any]:
    columns = zip(*(_examine(encoded, limits, side_px) for encoded in batch["bytes"]), strict=True)
    names = ("digest", "num_bytes", "error", "format", "side", "signature")
    examined = {name: np.array(values) for name, values in zip(names, columns, strict=True)}
    examined["error"] = np.where(batch["error"] == "", examined["error"], batch["error"])
    return {name: column for name, column in batch.items() if name != "bytes"} | examined


def _examine(
    encoded: bytes, limits: ImageLimits, side_px: int
) -> tuple[str, int, str, str, int, NDArray[np.uint8]]:
    digest = data.digest_of(encoded)
    try:
        picture = decode(encoded, limits, at_least_px=side_px)
    except ImageError as error:
        nothing = np.zeros(near_duplicates.SIGNATURE_BYTES, np.uint8)
        return digest, len(encoded), str(error), "", 0, nothing
    header = read_header(encoded, limits)
    signature = near_duplicates.signature(resize(picture, side_px), *picture.shape[:2])
    return digest, len(encoded), "", header.format_name, max(header.width, header.height), signature


def _without_details(reason: str) -> str:
    """Remove numbers and details of the one file, so that equal reasons can be counted."""
    return re.sub(r"\d+", "N", re.split(r"[:;]", reason)[0])


def _size_range(side: int) -> str:
    """Put the longer side into a range, by powers of two."""
    least = 1 << max(5, side.bit_length() - 1)
    return f"below {2 * least} px" if least == 32 else f"{least} to {2 * least - 1} px"
