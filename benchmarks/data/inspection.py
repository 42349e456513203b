"""Inspection against bare decoding on the same cores, and its memory as images grow in number."""

import itertools
import json
import logging
import multiprocessing
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from pydantic import Field

from benchmarks.support import machine, script, table
from benchmarks.support.memory import run_and_watch
from mask_ray.cli import parse
from mask_ray.config import ImageLimits, InspectSettings, Settings
from mask_ray.images.decode import decode_resized

_IMAGE_SIZE = 128
_NUM_CLASSES = 2


class InspectionSettings(Settings):
    """Inspect photos, repeated, and compare the rate with that of decoding them."""

    photos: Path = Field(description="Folder of photos.")
    few: int = Field(10_000, ge=1, description="Images of the first inspection.")
    many: int = Field(100_000, ge=1, description="Images of the second one.")
    num_cores: int = Field(2, ge=1, description="Cores to inspect on.")
    object_store_mb: int = Field(400, ge=80, description="Ray's object store, in MiB.")
    ceiling_s: float = Field(10, gt=0, description="How long the ceiling is measured.")


def _run(settings: InspectionSettings) -> None:
    print(machine.describe("ray", "pillow", "numpy"), flush=True)
    photos = [path for path in sorted(settings.photos.rglob("*")) if path.is_file()]
    given = [(photos[:512], settings.ceiling_s)] * settings.num_cores
    with multiprocessing.get_context("spawn").Pool(settings.num_cores) as pool:
        ceiling = sum(pool.starmap(_decoding_rate, given, chunksize=1))
    with TemporaryDirectory() as folder:
        sizes = (settings.few, settings.many)
        inspected = [_inspect(settings, photos, num, Path(folder)) for num in sizes]
    rows = [["decoding alone, a bare process a core", f"{ceiling:.0f}", "1.00", "", ""]]
    rows += [_row(result, ceiling) for result in inspected]
    header = [f"{settings.num_cores} cores", "images/s", "of decoding"]
    header += ["peak, MiB", "of it object store"]
    print(f"\n{table.render(header, rows)}")


def _row(result: dict[str, Any], ceiling: float) -> list[str]:
    rate = result["num_images"] / result["seconds"]
    return [
        f"inspection of {result['num_images']} images, to the written report",
        f"{rate:.0f}",
        f"{rate / ceiling:.2f}",
        f"{result['peak_mb']:.0f}",
        f"{result['store_mb']:.0f}",
    ]


def _decoding_rate(photos: list[Path], seconds: float) -> float:
    files, limits = [path.read_bytes() for path in photos], ImageLimits()
    began = time.perf_counter()
    for number, encoded in enumerate(itertools.cycle(files), 1):
        decode_resized(encoded, _IMAGE_SIZE, limits)
        if (passed := time.perf_counter() - began) > seconds:
            return number / passed
    raise AssertionError("there are no photos")


def _inspect(
    settings: InspectionSettings, photos: list[Path], num: int, folder: Path
) -> dict[str, Any]:
    """Of links to photos that are repeated, so that most images are copies of another."""
    source = folder / f"photos_{num}"
    for label in range(_NUM_CLASSES):
        (source / str(label)).mkdir(parents=True)
    for number, photo in zip(range(num), itertools.cycle(photos)):
        own = source / str(number % _NUM_CLASSES) / f"{number:07}{photo.suffix}"
        own.symlink_to(photo.resolve())
    flags = ["--data", str(source), "--output", str(folder / f"report_{num}")]
    limits = [str(settings.num_cores), str(settings.object_store_mb)]
    command = [sys.executable, "-m", "benchmarks.inspection", "inspect", *limits, *flags]
    return run_and_watch(command, f"inspecting {num} images")


def _inspect_in_own_ray(num_cores: str, object_store_mb: str, *flags: str) -> None:
    """Inspect; the last line printed is the number of images and the seconds, as JSON."""
    from mask_ray.inspection.run import inspect_data

    ray.init(
        address="local",
        num_cpus=int(num_cores),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(object_store_mb) * 2**20,
    )
    began = time.perf_counter()
    found = inspect_data(parse(InspectSettings, list(flags)))
    seconds = time.perf_counter() - began
    print(json.dumps({"num_images": found["num_images"], "seconds": seconds}))


def main() -> None:
    """Run the benchmark, or with `inspect` one inspection of it, in a process of its own."""
    if sys.argv[1:2] == ["inspect"]:
        _inspect_in_own_ray(*sys.argv[2:])
    else:
        script.main(InspectionSettings, _run)
