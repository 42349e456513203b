"""Sources of images: folders, archives, manifests, here or anywhere -> rows in Ray Data.

What a source is called says what it is; see `location`. An archive is fetched and unpacked under
`home()`, once, and is a folder from then on. All else is read where it is.
"""

from mask_ray.data.sources.location import (
    DEFAULT_NUM_DRAWN,
    DataError,
    is_synthetic,
    num_drawn,
    several,
    shown,
)
from mask_ray.data.sources.open import (
    ImageReader,
    Labelled,
    check,
    fetch,
    is_there,
    list_labelled,
    open_images,
    read,
    read_file,
    stats,
)

__all__ = [
    "DEFAULT_NUM_DRAWN",
    "DataError",
    "ImageReader",
    "Labelled",
    "check",
    "fetch",
    "is_synthetic",
    "is_there",
    "list_labelled",
    "num_drawn",
    "open_images",
    "read",
    "read_file",
    "several",
    "shown",
    "stats",
]
