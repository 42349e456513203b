"""Drawn faces with and without masks: a data set that needs no download.

A portrait is sampled first, as plain traits, and painted afterwards: backdrop, body, head, mask,
hair, hand, then what a camera does to it. Both classes share one palette, so the colour of a mask
also turns up in clothes, scarves and walls, and only its place over nose and mouth tells.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_ray.images.synthetic.painting import paint
from mask_ray.images.synthetic.traits import Portrait, sample

__all__ = ["CLASS_NAMES", "Portrait", "draw", "encode", "paint", "sample"]

CLASS_NAMES = ("with_mask", "without_mask")


def draw(index: int, *, seed: int = 0, image_size: int = 128) -> tuple[NDArray[np.uint8], int]:
    """Draw image `index` of data set `seed`, whatever was drawn before.

    Returns uint8 RGB of shape (image_size, image_size, 3) and the index of its class in
    `CLASS_NAMES`, which is `index % 2`.
    """
    return paint(sample(index, seed=seed), image_size), index % 2


def encode(index: int, *, seed: int = 0, image_size: int = 128) -> tuple[bytes, str]:
    """The image of `draw` as a JPEG file, and the name of its class."""
    portrait = sample(index, seed=seed)
    jpeg = io.BytesIO()
    image = Image.fromarray(paint(portrait, image_size))
    image.save(jpeg, "JPEG", quality=portrait.camera.jpeg_quality)
    return jpeg.getvalue(), CLASS_NAMES[index % 2]
