"""The highest memory that all processes of a Ray take together while images stream through it."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks import table
from mask_ray import data
from mask_ray.config import DataSettings, MaskRayError

IMAGE_SIZE = 128
_SAMPLE_EVERY_S = 1

# The kernel's own account of a process, in which a page that n processes share counts 1/n. Shmem
# is Ray's object store.
_FIELDS = {"Pss": "all", "Pss_Shmem": "object store"}
_PSS = re.compile(rf"^({'|'.join(_FIELDS)}): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Streamed:
    """What streaming some images took.

    Args:
        num_images: That came.
        seconds: Of reading and decoding all of them twice: to check them, and to use them.
        peak_mb: The highest memory of all processes at one moment, in MiB.
        store_mb: What of it was Ray's object store.
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
        f"{_SAMPLE_EVERY_S} s (PSS: a shared page counts once); object store of "
        f"{object_store_mb} MiB\n\n{table.render(header, rows)}"
    )


def _stream_and_watch(folder: Path, object_store_mb: int) -> Streamed:
    command = [sys.executable, "-m", __spec__.name, str(folder), str(object_store_mb)]
    return Streamed(**run_and_watch(command, f"streaming {folder}"))


def run_and_watch(command: Sequence[str], what: str) -> dict[str, Any]:
    """The JSON of a command's last line, with `peak_mb` and `store_mb` as in `Streamed`.

    Raises:
        MaskRayError: it fails; the message begins with `what`.
    """
    peak: Counter[str] = Counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, _memory_kb(process.pid), key=lambda sample: sample["Pss"])
            time.sleep(_SAMPLE_EVERY_S)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise MaskRayError(f"{what} ended with exit code {process.returncode}")
    megabytes = {"peak_mb": peak["Pss"] / 1024, "store_mb": peak["Pss_Shmem"] / 1024}
    return json.loads(output.splitlines()[-1]) | megabytes


def _memory_kb(pid: int) -> Counter[str]:
    """Summed over the process and all below it."""
    total: Counter[str] = Counter()
    with suppress(psutil.NoSuchProcess):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with suppress(OSError):  # it has ended
                rollup = Path("/proc", str(process.pid), "smaps_rollup").read_text()
                total.update({name: int(size) for name, size in _PSS.findall(rollup)})
    return total


def main() -> None:
    """Stream the folder of the command line; the last line printed is what it took, as JSON."""
    folder, object_store_mb = sys.argv[1:]
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=int(object_store_mb) * 2**20,
    )
    began = time.perf_counter()
    # Also the few images must stream, or the two would not compare.
    data.KEPT_SHARE_OF_OBJECT_STORE = 0
    images = data.load(DataSettings(data=folder), IMAGE_SIZE, task_cpus=1).split(*data.SPLITS)
    num_images = sum(len(batch["image"]) for batch in images.iter_batches(batch_size=64))
    seconds = time.perf_counter() - began
    print(json.dumps({"num_images": num_images, "seconds": seconds}))


if __name__ == "__main__":
    main()
