"""The picture that most files of a test hold, and how close its pixels must come."""

import numpy as np

from tests.support import image_files

PICTURE = np.asarray(image_files.picture())
JPEG_TOLERANCE = 4


def assert_same_picture(pixels: np.ndarray, expected: np.ndarray, tolerance: int = 0) -> None:
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance
