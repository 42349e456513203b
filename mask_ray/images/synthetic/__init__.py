"""Draw faces with and without masks: a data set that needs no download.

A portrait is first sampled as plain traits, then painted: backdrop, body, head, mask, hair, hand,
and the effects of a camera. Both classes share one palette, so mask colours also appear in clothes,
scarves and walls. Only the mask's place over nose and mouth separates the classes.
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
    """Draw image `index` of data set `seed`. The result does not depend on earlier calls.

    Returns uint8 RGB of shape (image_size, image_size, 3) and the index of its class in
    `CLASS_NAMES`, which is `index % 2`.
    """
    return paint(sample(index, seed=seed), image_size), index % 2


def encode(index: int, *, seed: int = 0, image_size: int = 128) -> tuple[bytes, str]:
    """Draw the same image as a JPEG file. Returns it and the name of its class."""
    portrait = sample(index, seed=seed)
    jpeg = io.BytesIO()
    image = Image.fromarray(paint(portrait, image_size))
    image.save(jpeg, "JPEG", quality=portrait.camera.jpeg_quality)
    return jpeg.getvalue(), CLASS_NAMES[index % 2]
