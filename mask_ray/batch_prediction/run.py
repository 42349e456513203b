"""Classify the images of a source into a file with one row for each image.

A pool of actors, with one core each, reads, decodes and classifies the files of a table. Each actor
does all three. Reading tasks of Ray Data would run in other processes, with a second of imports
each, and would send the bytes through the object store.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from mask_ray import data, tracking
from mask_ray.batch_prediction.classifier import BatchClassifier
from mask_ray.batch_prediction.output import Parts
from mask_ray.config import ImageLimits
from mask_ray.config.prediction import PredictSettings
from mask_ray.data import sources
from mask_ray.models.predictor import Predictor
from mask_ray.progress import Progress, say
from mask_ray.stalls import watched

# Files in a block: a few seconds of work for an actor.
_BLOCK_SIZE = 512

# Files that an actor reads at the same time: enough to hide the latency of slow stores.
_BATCH_SIZE = 64

_ROWS_PER_PART = 2048

# Prefix of the column with the probability of a class.
_COLUMN_PREFIX = "probability_"


def predict_files(settings: PredictSettings) -> dict[str, Any]:
    """Classify all images of the source that are not finished yet. Ray must be running.

    Returns:
        `output`, `model` (`name`, `version`), `num_images`, `num_errors`, `labels` (images by
        predicted class), `num_done_before`, `seconds` and `images_per_second`.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        ModelFileError: the file is not a classifier.
        data.DataError: there is no such source, or no file in it.
        OutputError: the output cannot be written, or belongs to another prediction.
    """
    started = time.perf_counter()
    model = tracking.resolve_model(settings.model_uri)
    class_names = Predictor(model.path).class_names
    onnx = model.path.read_bytes()
    files, reader = sources.open_images(settings.source)
    parts = Parts(settings.output.absolute(), _schema(class_names))
    with parts.opened(_made_with(settings, model, onnx)) as done:
        if len(done):
            say(f"resuming: {len(done)} images are done already")
        progress = Progress("predicting", len(files) - len(done))
        with _saying_how_to_resume():
            predicted = _predict(settings, files, reader, onnx, done)
            num_predicted = _write(predicted, parts, model, progress)
            counts = parts.join(settings.output_format)
    seconds = time.perf_counter() - started
    return {
        "output": str(settings.output.absolute()),
        "model": {"name": model.name, "version": model.version},
        "num_images": counts.total(),
        "num_errors": counts.pop("", 0),
        "labels": dict(sorted(counts.items())),
        "num_done_before": len(done),
        "seconds": round(seconds, 2),
        "images_per_second": round(num_predicted / seconds, 1),
    }


@contextmanager
def _saying_how_to_resume() -> Iterator[None]:
    """Add to Ctrl-C what becomes of the rows."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("finished rows are kept; run the same command to resume") from stop


def _schema(class_names: tuple[str, ...]) -> pa.Schema:
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float32()),
            *((f"{_COLUMN_PREFIX}{name}", pa.float32()) for name in class_names),
            ("error", pa.string()),
            ("model_name", pa.string()),
            ("model_version", pa.string()),
        ]
    )


def _made_with(
    settings: PredictSettings, model: tracking.ResolvedModel, onnx: bytes
) -> dict[str, Any]:
    return {
        "source": settings.source,
        "model_name": model.name,
        "model_version": model.version,
        "model_sha256": hashlib.sha256(onnx).hexdigest(),
        "max_image_bytes": settings.max_image_bytes,
        "max_image_pixels": settings.max_image_pixels,
    }


def _predict(
    settings: PredictSettings,
    files: pa.Table,
    reader: sources.ImageReader,
    onnx: bytes,
    done: NDArray[np.bytes_],
) -> Dataset:
    """Return rows `path`, `error` (empty if there is none) and `probabilities` (else NaN)."""
    context = ray.data.DataContext.get_current()
    # Keep rows in the order of paths, whichever block ends first.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    free = ray.available_resources().get("CPU", 0)
    num_predictors = settings.num_predictors or max(1, math.floor(free))
    limits = ImageLimits(
        max_image_bytes=settings.max_image_bytes, max_image_pixels=settings.max_image_pixels
    )
    blocks = [files.slice(start, _BLOCK_SIZE) for start in range(0, len(files), _BLOCK_SIZE)]
    # Not `from_arrow`: it starts processes only to count the rows of each block.
    return ray.data.from_blocks(blocks).map_batches(
        BatchClassifier,
        fn_constructor_args=(ray.put(onnx), reader, ray.put(done), limits),
        batch_size=_BATCH_SIZE,
        batch_format="pyarrow",
        num_cpus=min(1.0, free / num_predictors),
        compute=ActorPoolStrategy(size=num_predictors),
    )


def _write(
    predicted: Dataset, parts: Parts, model: tracking.ResolvedModel, progress: Progress
) -> int:
    """Write parts as rows arrive; return the number of rows."""
    num_rows = 0
    for batch in _in_parts(predicted, progress):
        parts.write(_to_table(batch, parts.schema, model))
        num_rows += len(batch["path"])
    return num_rows


def _in_parts(predicted: Dataset, progress: Progress) -> Iterator[data.Batch]:
    """Yield batches of at least `_ROWS_PER_PART` rows; the last may be smaller."""
    waiting: list[data.Batch] = []
    for batch in watched(predicted.iter_batches(batch_size=None), "predicting"):
        progress.add(len(batch["path"]))
        waiting.append(batch)
        if sum(len(batch["path"]) for batch in waiting) >= _ROWS_PER_PART:
            yield _concatenate(waiting)
            waiting = []
    if waiting:
        yield _concatenate(waiting)


def _concatenate(batches: list[data.Batch]) -> data.Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _to_table(batch: data.Batch, schema: pa.Schema, model: tracking.ResolvedModel) -> pa.Table:
    num_rows, errors, probabilities = len(batch["path"]), batch["error"], batch["probabilities"]
    failed = errors != ""
    class_names = np.array(schema.names[3:-3])
    best = np.argmax(np.nan_to_num(probabilities), axis=1)
    columns = [
        pa.array(batch["path"]),
        pa.array([n.removeprefix(_COLUMN_PREFIX) for n in class_names[best]], mask=failed),
        *(pa.array(column, mask=failed) for column in (probabilities.max(1), *probabilities.T)),
        pa.array(errors, mask=~failed),
        *(pa.array([value] * num_rows, pa.string()) for value in (model.name, model.version)),
    ]
    return pa.table(columns, schema=schema)
