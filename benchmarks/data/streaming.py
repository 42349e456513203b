"""The peak memory of Ray while images stream through Ray Data."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from benchmarks.support import table
from benchmarks.support.memory import SAMPLE_EVERY_S, run_and_watch
from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import dataset

IMAGE_SIZE = 128


@dataclass(frozen=True)
class Streamed:
    """What streaming some images took.

    Args:
        num_images: Images that arrived.
        seconds: Time to read and decode all of them twice: to check them, and to use them.
        peak_mb: Peak memory of all processes together, in MiB.
        store_mb: Ray's object store at that moment, in MiB.
    """

    num_images: int
    seconds: float
    peak_mb: float
    store_mb: float


def compare(folders: Sequence[Path], object_store_mb: int) -> None:
    """Stream each folder, in a Ray of its own, and print the table."""
    runs = [_stream_and_watch(folder, object_store_mb) for folder in folders]
    header = ["images", "decoded, MiB", "peak, MiB", "in the object store", "others"]
    header += ["seconds", "of the first"]
    rows = [
        [
            str(run.num_images),
            f"{run.num_images * IMAGE_SIZE**2 * 3 / 2**20:.0f}",
            f"{run.peak_mb:.0f}",
            f"{run.store_mb:.0f}",
            f"{run.peak_mb - run.store_mb:.0f}",
            f"{run.seconds:.0f}",
            f"{run.peak_mb / runs[0].peak_mb:.2f}",
        ]
        for run in runs
    ]
    print(
        f"\nMemory of the driver and all of Ray's processes at {IMAGE_SIZE} px, every "
        f"{SAMPLE_EVERY_S} s (PSS: a shared page counts once); object store of "
        f"{object_store_mb} MiB\n\n{table.render(header, rows)}"
    )


def _stream_and_watch(folder: Path, object_store_mb: int) -> Streamed:
    command = [sys.executable, "-m", __spec__.name, str(folder), str(object_store_mb)]
    return Streamed(**run_and_watch(command, f"streaming {folder}"))


def main() -> None:
    """Stream the folder of the command line; the last line printed is the cost, as JSON."""
    folder, object_store_mb = sys.argv[1:]
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(object_store_mb) * 2**20,
    )
    began = time.perf_counter()
    # Stream even the few images, or the two runs would not compare.
    dataset.KEPT_SHARE_OF_OBJECT_STORE = 0
    images = data.load(DataSettings(data=folder), IMAGE_SIZE, task_cpus=1).split(*data.SPLITS)
    num_images = sum(len(batch["image"]) for batch in images.iter_batches(batch_size=64))
    seconds = time.perf_counter() - began
    print(json.dumps({"num_images": num_images, "seconds": seconds}))


if __name__ == "__main__":
    main()
