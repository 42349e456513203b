"""Read again the images that a list of files names, each checked against its digest.

A run's `FileList` says which images its model was tested on. Another run reads them by these paths,
whatever its own source is.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mask_ray.config import ImageLimits
from mask_ray.data.dataset import Batch, fits_object_store, map_rows, spare_cpus
from mask_ray.data.sources.location import DataError, Place, locate
from mask_ray.data.sources.reading import num_blocks, read_each
from mask_ray.data.summary import digest_of
from mask_ray.images import synthetic
from mask_ray.images.decode import decode_resized
from mask_ray.images.errors import ImageError

_DRAWN = "synthetic/"


def read_listed(
    files: pa.Table, class_names: Sequence[str], image_size: int, limits: ImageLimits
) -> ray.data.Dataset:
    """Read and decode listed images. Ray must be running.

    Args:
        files: Columns `path`, `digest` and `label` (class name), as in a `FileList`.
        class_names: Class names, in the order of the returned labels.
        image_size: Side of the decoded images, in pixels.
        limits: Limits of the decoder.

    Returns:
        Rows `image` (uint8, (image_size, image_size, 3)), `label` (index), `digest`, `path` and
        `error`, which is empty if the image is readable and has its digest.

    Raises:
        DataError: a label is not among the class names.
    """
    strange = sorted(set(files["label"].to_pylist()) - set(class_names))
    if strange:
        raise DataError(f"classes must be among {', '.join(class_names)}; got {', '.join(strange)}")
    labels = [class_names.index(name) for name in files["label"].to_pylist()]
    rows = pa.table(
        {
            "path": files["path"],
            "digest": files["digest"],
            "label": pa.array(labels, pa.int64()),
        }
    ).combine_chunks()
    size = -(-len(rows) // num_blocks(len(rows)))
    blocks = [rows.slice(start, size) for start in range(0, len(rows), size)]
    dataset = map_rows(
        # Not `from_arrow`, whose tasks take a whole CPU each.
        ray.data.from_blocks(blocks),
        decode_listed,
        spare_cpus(),
        image_size=image_size,
        limits=limits,
    )
    return dataset.materialize() if fits_object_store(len(rows), image_size) else dataset


def decode_listed(batch: Batch, image_size: int, limits: ImageLimits) -> Batch:
    """Read and decode a batch with the columns `path`, `digest` and `label`; see `read_listed`."""
    read = _contents(batch["path"].tolist())
    images = np.zeros((len(read), image_size, image_size, 3), np.uint8)
    errors = []
    for pixels, (encoded, error), digest in zip(images, read, batch["digest"], strict=True):
        if not error and digest_of(encoded) != digest:
            error = "has changed since the run read it"
        errors.append(error or _decode_into(pixels, encoded, limits))
    return batch | {"image": images, "error": np.array(errors, str)}


def _decode_into(pixels: Any, encoded: bytes, limits: ImageLimits) -> str:
    try:
        pixels[:] = decode_resized(encoded, len(pixels), limits)
    except ImageError as error:
        return str(error)
    return ""


def _contents(paths: list[str]) -> list[tuple[bytes, str]]:
    """Read or draw each file. Returns its bytes and an empty string, or no bytes and the error."""
    if paths and paths[0].startswith(_DRAWN):
        return [(_drawn(path), "") for path in paths]
    try:
        return list(read_each(_places(paths)))
    except (DataError, OSError) as error:
        return [(b"", f"cannot be read: {error}")] * len(paths)


def _drawn(path: str) -> bytes:
    """Draw the image of a path such as `synthetic/0/17.jpg`: seed and number."""
    _, seed, file = PurePosixPath(path).parts
    return synthetic.encode(int(PurePosixPath(file).stem), seed=int(seed))[0]


def _places(paths: list[str]) -> list[Place]:
    """Locate files; open each store once."""
    opened: dict[str, Place] = {}
    places = []
    for path in paths:
        scheme, colon, rest = path.partition("://")
        if not colon:
            places.append(Place(path))
            continue
        store = f"{scheme}://{rest.partition('/')[0]}"
        if store not in opened:
            # The root: a path may have spaces or signs that a URI would have to quote.
            opened[store] = locate(f"{store}/")
        places.append(opened[store].at(rest))
    return places
