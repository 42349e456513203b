"""How fast photos come in, and in how much memory: Ray Data as mask_ray uses it, and tf.data.

Both read the same files, decode and resize them, and give batches of 64 uint8 images to one
iterator in one process. They take turns, so that what else the machine does meets both; every
file is in the page cache. mask_ray also checks, hashes and splits each file, turns it upright and
resizes it with antialiasing; `tf.image.resize` by default does not, so a second tf.data pipeline
does.
"""

import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from pydantic import Field

from benchmarks.data import streaming
from benchmarks.support import machine, script, table
from mask_ray import data
from mask_ray.config import DataSettings, Settings
from mask_ray.data import dataset as data_set
from mask_ray.data import sources

BATCH_SIZE = 64
_PACKAGES = ("ray", "tensorflow", "pillow", "pyarrow", "numpy")

# One pass over all files; how many images came.
Epoch = Callable[[], int]


class IngestSettings(Settings):
    """Compare mask_ray's reading and decoding of photos with tf.data's; check its memory is flat.

    First table: images a second, the median of some rounds in which the pipelines take turns.
    Second table: the highest memory of all processes together while few and many images stream
    through an object store that is smaller than the decoded images.
    """

    data: list[Path] = Field(
        [Path("../shared/data/observations"), Path("../shared/data/wild")],
        min_length=1,
        description="Folders with one sub-folder of photos per class.",
    )
    num_files: int = Field(
        5000, ge=64, description="Files of an epoch; photos are repeated to make them."
    )
    image_sizes: list[int] = Field([128, 224], description="Sides to resize to, in pixels.")
    rounds: int = Field(5, ge=1, description="Timed epochs of each pipeline and size.")
    memory_images: list[int] = Field(
        [2000, 50_000],
        description="How many images to stream for the second table; [] leaves it out.",
    )
    object_store_mb: int = Field(
        400, ge=100, description="Ray's object store in the second table, in MiB."
    )


@dataclass
class Pipeline:
    """One contestant at one size.

    Args:
        name: For the table.
        start: Makes `epoch`; seconds of it and of the first epoch are not part of the rate.
    """

    name: str
    start: Callable[[], Epoch]
    epoch: Epoch = field(init=False)
    start_s: float = field(init=False)
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Start, and run one epoch that does not count."""
        began = time.perf_counter()
        self.epoch = self.start()
        self.epoch()
        self.start_s = time.perf_counter() - began

    def measure(self) -> None:
        """Run one epoch that counts."""
        began, cpu_before = time.perf_counter(), _cpu_seconds()
        num_images = self.epoch()
        self.rates.append(num_images / (time.perf_counter() - began))
        cpu_s = sum(after - cpu_before.get(pid, 0.0) for pid, after in _cpu_seconds().items())
        self.cpu_ms.append(cpu_s / num_images * 1000)


def _run(settings: IngestSettings) -> None:
    photos = _photos(settings.data)
    print(machine.describe(*_PACKAGES), flush=True)
    with tempfile.TemporaryDirectory() as name:
        _compare_rates(settings, _repeated(photos, settings.num_files, Path(name, "rate")))
        if settings.memory_images:
            folders = [
                _repeated(photos, count, Path(name, str(count))) for count in settings.memory_images
            ]
            streaming.compare(folders, settings.object_store_mb)


def _photos(folders: list[Path]) -> dict[str, list[Path]]:
    """Photos by class, over all folders."""
    labelled = sources.list_labelled("\n".join(map(str, folders)))
    photos: dict[str, list[Path]] = {name: [] for name in labelled.class_names}
    paths = labelled.reader.names(labelled.files)
    for path, label in zip(paths, labelled.files["label"].to_pylist(), strict=True):
        photos[labelled.class_names[label]].append(Path(path))
    return photos


def _repeated(photos: dict[str, list[Path]], num_files: int, folder: Path) -> Path:
    """A folder of `num_files` links, in which each class has its share."""
    num_photos = sum(map(len, photos.values()))
    for class_name, paths in photos.items():
        (folder / class_name).mkdir(parents=True)
        share = round(num_files * len(paths) / num_photos)
        for number, path in enumerate(itertools.islice(itertools.cycle(paths), share)):
            (folder / class_name / f"{number}{path.suffix}").symlink_to(path)
    return folder


def _compare_rates(settings: IngestSettings, folder: Path) -> None:
    began = time.perf_counter()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray_start_s = time.perf_counter() - began
    began = time.perf_counter()
    import tensorflow  # noqa: F401 - its import is what is timed

    tensorflow_start_s = time.perf_counter() - began
    print(
        f"\n{settings.num_files} files, batches of {BATCH_SIZE}; median of {settings.rounds} "
        f"rounds; ray.init took {ray_start_s:.1f} s, importing TensorFlow {tensorflow_start_s:.1f}"
    )
    for image_size in settings.image_sizes:
        pipelines = [
            Pipeline("mask_ray (Ray Data)", partial(_ray_data, folder, image_size)),
            Pipeline("tf.data", partial(_tf_data, folder, image_size, False)),
            Pipeline("tf.data, antialias", partial(_tf_data, folder, image_size, True)),
        ]
        for pipeline in pipelines:
            pipeline.warm_up()
        for _, pipeline in itertools.product(range(settings.rounds), pipelines):
            pipeline.measure()
        _print_rates(image_size, pipelines)
    ray.shutdown()


def _ray_data(folder: Path, image_size: int) -> Epoch:
    # Every epoch reads and decodes, as with a set that is too large to keep.
    data_set.KEPT_SHARE_OF_OBJECT_STORE = 0
    images = data.load(DataSettings(data=str(folder)), image_size, task_cpus=1).split(*data.SPLITS)
    images.context.enable_progress_bars = False

    def epoch() -> int:
        return sum(len(batch["image"]) for batch in images.iter_batches(batch_size=BATCH_SIZE))

    return epoch


def _tf_data(folder: Path, image_size: int, antialias: bool) -> Epoch:
    import tensorflow as tf

    def decode(path: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        resized = tf.image.resize(image, (image_size, image_size), antialias=antialias)
        return tf.cast(resized, tf.uint8)

    labelled = sources.list_labelled(str(folder))
    files = labelled.reader.names(labelled.files)
    images = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files), seed=0)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )

    def epoch() -> int:
        return sum(len(batch) for batch in images.as_numpy_iterator())

    return epoch


def _cpu_seconds() -> dict[int, float]:
    """What this process and all below it have used so far, by process."""
    used: dict[int, float] = {}
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
    return used


def _print_rates(image_size: int, pipelines: list[Pipeline]) -> None:
    peer = statistics.median(pipelines[1].rates)
    rows = [
        [
            pipeline.name,
            f"{statistics.median(pipeline.rates):.0f}",
            f"{min(pipeline.rates):.0f}..{max(pipeline.rates):.0f}",
            f"{statistics.median(pipeline.rates) / peer:.2f}",
            f"{statistics.median(pipeline.cpu_ms):.2f}",
            f"{pipeline.start_s:.1f}",
        ]
        for pipeline in pipelines
    ]
    header = [
        f"{image_size} px",
        "images/s",
        "range",
        "of tf.data",
        "CPU ms/image",
        "start + 1st epoch, s",
    ]
    print(f"\n{table.render(header, rows)}", flush=True)


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(IngestSettings, _run)
