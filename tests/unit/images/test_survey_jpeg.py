"""What a look through a JPEG leaves out."""

import pytest

from mask_ray.images.decode import decode, examine
from mask_ray.images.errors import ImageError
from tests.support import image_files


def test_only_the_first_scan_of_an_ordinary_photo_counts_and_the_decoder_reads_no_other() -> None:
    photo = image_files.jpeg()
    scan = photo[photo.index(b"\xff\xda") : -2]
    more = photo[:-2] + 50 * scan + photo[-2:]
    extra_s = examine(more).seconds - examine(photo).seconds
    assert extra_s == pytest.approx(50 * len(scan) * 25e-9)
    with pytest.raises(ImageError):
        decode(more)
