"""Batch prediction against what the same cores can do, and its memory as images grow in number.

Two ceilings are measured by bare processes, one a core, each with ONNX Runtime on one thread:
classifying images that are decoded already, and decoding and classifying files. No batch
prediction on these cores can pass the second.
"""

import itertools
import json
import logging
import multiprocessing
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from pydantic import Field

from benchmarks.serving import served_models
from benchmarks.support import machine, script, table
from benchmarks.support.memory import run_and_watch
from mask_ray.batch_prediction.run import predict_files
from mask_ray.cli import parse
from mask_ray.config import ImageLimits, Settings
from mask_ray.config.prediction import PredictSettings
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor

_NUM_TOGETHER = 8
_NUM_CEILING_PHOTOS = 512


class BatchPredictionSettings(Settings):
    """Classify photos, repeated, and compare the rate with ONNX Runtime's own."""

    photos: Path = Field(description="Folder of photos.")
    backbone_weights: str = Field("imagenet", description="See jobs.train.")
    image_size: int = Field(128, description="Side of the model's input in pixels.")
    few: int = Field(10_000, ge=1, description="Images of the first prediction.")
    many: int = Field(100_000, ge=1, description="Images of the second one.")
    num_cores: int = Field(2, ge=1, description="Cores to predict on.")
    object_store_mb: int = Field(400, ge=80, description="Ray's object store, in MiB.")
    ceiling_s: float = Field(10, gt=0, description="How long each ceiling is measured.")


def _run(settings: BatchPredictionSettings) -> None:
    print(machine.describe("ray", "onnxruntime", "pillow"), flush=True)
    with TemporaryDirectory() as folder:
        model = served_models.write_onnx(
            Path(folder, "model.onnx"), settings.backbone_weights, settings.image_size
        )
        photos = [path for path in sorted(settings.photos.rglob("*")) if path.is_file()]
        ceilings = [_ceiling(settings, model, photos, decoding) for decoding in (False, True)]
        sizes = (settings.few, settings.many)
        predicted = [_predict(settings, model, photos, num, Path(folder)) for num in sizes]
    _print(settings, ceilings, predicted)


def _ceiling(
    settings: BatchPredictionSettings, model: Path, photos: list[Path], decoding: bool
) -> float:
    """Images a second, of as many processes as cores at once."""
    context = multiprocessing.get_context("spawn")
    # From the whole folder: photos with neighbouring names may be alike in size.
    spread = photos[:: max(1, len(photos) // _NUM_CEILING_PHOTOS)]
    with context.Pool(settings.num_cores) as pool:
        given = [(model, spread, decoding, settings.ceiling_s)] * settings.num_cores
        return sum(pool.starmap(_bare_rate, given, chunksize=1))


def _bare_rate(model: Path, photos: list[Path], decoding: bool, seconds: float) -> float:
    predictor = Predictor(model)
    files = [path.read_bytes() for path in photos]

    def decode(group: list[bytes]) -> Any:
        return np.stack([decode_resized(f, predictor.image_size, ImageLimits()) for f in group])

    groups = [files[i : i + _NUM_TOGETHER] for i in range(0, len(files), _NUM_TOGETHER)]
    decoded = [decode(group) for group in groups]
    num_images, began = 0, time.perf_counter()
    for place in itertools.cycle(range(len(groups))):
        predictor.predict(decode(groups[place]) if decoding else decoded[place])
        num_images += len(groups[place])
        if (passed := time.perf_counter() - began) > seconds:
            return num_images / passed
    raise AssertionError("there are no photos")


def _predict(
    settings: BatchPredictionSettings, model: Path, photos: list[Path], num: int, folder: Path
) -> dict[str, Any]:
    source = folder / f"photos_{num}"
    source.mkdir()
    for number, photo in zip(range(num), itertools.cycle(photos)):
        (source / f"{number:07}{photo.suffix}").symlink_to(photo.resolve())
    own = [str(settings.num_cores), str(settings.object_store_mb)]
    flags = [str(source), "--model-uri", str(model), "--output", str(folder / f"{num}.parquet")]
    command = [sys.executable, "-m", "benchmarks.batch_prediction", "predict", *own, *flags]
    return run_and_watch(command, f"predicting {num} images")


def _print(
    settings: BatchPredictionSettings, ceilings: list[float], predicted: list[dict[str, Any]]
) -> None:
    alone, both = ceilings
    rows = [
        [name, f"{rate:.0f}", f"{rate / alone:.2f}", f"{rate / both:.2f}", peak, store]
        for name, rate, peak, store in [
            ("ONNX Runtime alone, of decoded images", alone, "", ""),
            ("decoding and ONNX Runtime, a bare process a core", both, "", ""),
            *(
                (
                    f"jobs.predict, {result['num_images']} images",
                    result["images_per_second"],
                    f"{result['peak_mb']:.0f}",
                    f"{result['store_mb']:.0f}",
                )
                for result in predicted
            ),
        ]
    ]
    header = [f"{settings.image_size} px, {settings.num_cores} cores", "images/s"]
    header += ["of ONNX Runtime", "of both", "peak, MiB", "of it object store"]
    print(f"\n{table.render(header, rows)}")


def _predict_in_own_ray(num_cores: str, object_store_mb: str, *flags: str) -> None:
    """Predict; the last line printed is the result, as JSON."""
    ray.init(
        address="local",
        num_cpus=int(num_cores),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(object_store_mb) * 2**20,
    )
    print(json.dumps(predict_files(parse(PredictSettings, list(flags)))))


def main() -> None:
    """Run the benchmark, or with `predict` one prediction of it, in a process of its own."""
    if sys.argv[1:2] == ["predict"]:
        _predict_in_own_ray(*sys.argv[2:])
    else:
        script.main(BatchPredictionSettings, _run)
