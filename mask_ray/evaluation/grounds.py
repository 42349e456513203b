"""Images that versions of a model are compared on: test splits of runs, and a reference set.

An image is named by its digest and its label. The list of files of a run says which images its
model was tested on, and which it was trained or validated on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import Dataset

from mask_ray import data, tracking
from mask_ray.config import DataSettings, ImageLimits, MaskRayError, SplitName
from mask_ray.data import sources
from mask_ray.data.file_list import FILE_LIST
from mask_ray.data.listed import read_listed

_READ = ("path", "digest", "label")


class GroundError(MaskRayError):
    """Images that versions should be compared on cannot be used; the message says why."""


@dataclass(frozen=True)
class HeldOutImages:
    """A whole set of images that versions are compared on.

    Args:
        at_size: Given an image size S, returns rows `image` (uint8, (S, S, 3)), `label` and
            `digest`.
        class_names: Class names in the order of labels.
        digest: Digest of the whole data set.
        limits: Limits of the decoder, also for images of other sets.
    """

    at_size: Callable[[int], Dataset]
    class_names: list[str]
    digest: str
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True)
class RunImages:
    """The images of the run that made a version, as its list of files names them.

    Args:
        tested: Readable images of the test split: columns `path`, `digest` and `label`.
        seen: Digests of the images that the model was trained or validated on.
    """

    tested: pa.Table
    seen: frozenset[str]


def load_held_out(
    settings: DataSettings, image_size: int, images: data.ImageData | None = None
) -> HeldOutImages:
    """Load the test split of a data set; other image sizes are read again when needed.

    Args:
        settings: Source of the images.
        image_size: First size that is needed, in pixels.
        images: The data set at that size, if it was read already.

    Raises:
        data.DataError: the data cannot be used.
    """
    return _held_out(settings, image_size, images, ("test",))


def load_reference(source: str, limits: ImageLimits, image_size: int) -> HeldOutImages:
    """Load all images of a reference set.

    Args:
        source: Source of the images.
        limits: Limits of the decoder.
        image_size: First size that is needed, in pixels.

    Raises:
        data.DataError: the data cannot be used.
    """
    own = limits.model_dump(include=set(ImageLimits.model_fields))
    return _held_out(DataSettings(data=source, **own), image_size, None, data.SPLITS)


def _held_out(
    settings: DataSettings,
    image_size: int,
    images: data.ImageData | None,
    splits: tuple[SplitName, ...],
) -> HeldOutImages:
    loaded = {image_size: images or data.load(settings, image_size, needed=())}

    def at_size(size: int) -> Dataset:
        if size not in loaded:
            loaded[size] = data.load(settings, size, needed=())
        return loaded[size].identified(*splits)

    first = loaded[image_size]
    limits = ImageLimits(**settings.model_dump(include=set(ImageLimits.model_fields)))
    return HeldOutImages(at_size, first.class_names, first.summary.digest, limits)


def load_run_images(run_id: str) -> RunImages:
    """Read the list of files of a run.

    Raises:
        GroundError: the run has no such list, or it cannot be read.
    """
    try:
        run = tracking.Run(run_id)
        with TemporaryDirectory() as folder:
            listed = pq.read_table(run.download(FILE_LIST, Path(folder)))
        readable = listed.filter(pc.equal(listed["error"], ""))
        split = readable["split"]
        seen = readable["digest"].filter(pc.is_in(split, pa.array(["train", "val"])))
        tested = readable.filter(pc.equal(split, "test")).select(_READ)
    except (tracking.TrackingError, pa.ArrowException, KeyError) as error:
        raise GroundError(
            f"the list of files of its run {run_id} cannot be read: {error}"
        ) from error
    return RunImages(tested, frozenset(seen.to_pylist()))


def dataset_of(
    files: pa.Table, class_names: list[str], limits: ImageLimits
) -> Callable[[int], Dataset]:
    """Return a function from an image size to the rows of listed images; see `read_listed`."""
    return partial(_read, files, tuple(class_names), limits)


def _read(files: pa.Table, class_names: tuple[str, ...], limits: ImageLimits, size: int) -> Dataset:
    return read_listed(files, class_names, size, limits)


def rememberable(source: str) -> str:
    """Return a source as it is stored with a model.

    Raises:
        GroundError: its URI holds credentials, which would be stored, or its path is relative.
    """
    if sources.shown(source) != source:
        raise GroundError(
            "reference_data is stored with the model, so it must not hold credentials or a query; "
            f"take them from the environment; got {sources.shown(source)} and more"
        )
    return "\n".join(map(_absolute, sources.several(source)))


def _absolute(source: str) -> str:
    if "://" in source or sources.is_synthetic(source):
        return source
    path = Path(source).expanduser()
    if not path.is_absolute():
        raise GroundError(
            f"reference_data must be an absolute path, since later runs read it too; got {source}"
        )
    return str(path)
