"""Turn sources of labelled images into checked, split, decoded Ray Datasets."""

from mask_ray.data.dataset import (
    LEAST_TASK_CPUS,
    Batch,
    DataError,
    ImageData,
    Source,
    load,
    map_rows,
    open_source,
    params,
    spare_cpus,
    take_stock,
)
from mask_ray.data.sources.reading import task_options
from mask_ray.data.splits import SPLITS, split_of
from mask_ray.data.summary import Summary, digest_of, summarise

__all__ = [
    "LEAST_TASK_CPUS",
    "SPLITS",
    "Batch",
    "DataError",
    "ImageData",
    "Source",
    "Summary",
    "digest_of",
    "load",
    "map_rows",
    "open_source",
    "params",
    "spare_cpus",
    "split_of",
    "summarise",
    "take_stock",
    "task_options",
]
