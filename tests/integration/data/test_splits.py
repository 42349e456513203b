"""Real photos of one picture are in one split."""

from pathlib import Path

import numpy as np
from PIL import Image

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import near_duplicates, sources, splits
from mask_ray.images.decode import decode, resize

SETTINGS = DataSettings(data="folder")


def signature(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return near_duplicates.signature(resize(pixels, 128), *pixels.shape[:2])


def test_no_picture_of_real_photos_is_in_two_splits(shared: Path) -> None:
    labelled = sources.list_labelled(str(shared / "data" / "observations"))
    placed = splits.of_files(labelled, SETTINGS)
    names = np.array(placed["split"])
    signatures, copies = [], set()
    for (encoded, _), split in zip(labelled.reader.contents(placed), names, strict=True):
        copies.add((data.digest_of(encoded), split))
        signatures.append(signature(Image.fromarray(decode(encoded, at_least_px=128))))
    every = np.stack(signatures)
    assert (len(placed), len(copies)) == (1376, 1376 - 97)
    crossing, num_pairs = 0, 0
    for row in range(len(every) - 1):
        rest = np.arange(row + 1, len(every))
        same = near_duplicates.correlations(every, np.full(len(rest), row), rest)
        alike = rest[same >= near_duplicates.SAME_PICTURE]
        num_pairs += len(alike)
        crossing += int((names[alike] != names[row]).sum())
    assert num_pairs > 1300
    assert crossing == 0
