"""Read sources of images into Ray Data: folders, archives and manifests, local or remote.

The kind of a source follows from its name; see `location`. Archives are downloaded and unpacked
once, under `home()`, and read as folders. Other sources are read in place.
"""

from mask_ray.data.sources.location import (
    DEFAULT_NUM_DRAWN,
    DataError,
    is_synthetic,
    num_drawn,
    several,
    shown,
    title,
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
    "title",
]
