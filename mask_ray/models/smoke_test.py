"""Check that a model file can serve: it loads, and it answers a few images with probabilities.

A model that is to be switched to must also keep within the time and memory that a service has.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from mask_ray.config import MaskRayError
from mask_ray.models.predictor import Images, ModelFileError, Predictor, Probabilities

# Rows of float32 softmax sum to 1 within 1e-6; int8 models' output is float32 too.
_SUM_TOLERANCE = 1e-3


# A try that another process delayed says nothing about the model.
_NUM_TRIES = 3


@dataclass(frozen=True)
class ModelLimits:
    """What a model may cost in a replica.

    Args:
        batch_size: Images of a full batch.
        batch_s: Longest that one thread may take for a full batch, in seconds.
        memory_mb: Most memory of the loaded model and a full batch, in MiB.
    """

    batch_size: int
    batch_s: float
    memory_mb: float


class ModelRefusedError(MaskRayError):
    """The model must not be served; the message gives the reason, without paths."""


def load_checked(
    path: Path,
    num_threads: int = 1,
    class_names: tuple[str, ...] | None = None,
    limits: ModelLimits | None = None,
) -> Predictor:
    """Load a model, and check its answers to a few fixed images.

    Args:
        path: ONNX file.
        num_threads: Threads of the predictor, which is shared.
        class_names: Class names that the model must have, in this order; None allows any.
        limits: What the model may cost. To be checked in a process that does nothing else, since
            the memory is that of the process.

    Raises:
        ModelRefusedError: the file cannot be loaded, has other classes, costs too much, or its
            answers are not probabilities.
    """
    before_mb = _memory_mb()
    try:
        predictor = Predictor(path, num_threads, is_shared=True)
    except ModelFileError as error:
        raise ModelRefusedError(str(error).replace(str(path), path.name)) from error
    if class_names is not None and predictor.class_names != class_names:
        raise ModelRefusedError(
            f"class_names must be {', '.join(class_names)}, which are served now, unless "
            f"allow_other_classes is set; got {', '.join(predictor.class_names)}"
        )
    if limits is not None:
        check_seconds(predictor, limits)
        check_memory(_memory_mb() - before_mb, limits)
    check_answers(predictor)
    return predictor


def check_seconds(
    predictor: Predictor, limits: ModelLimits, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Check the time of one image, and then of a full batch; the fastest of three tries counts.

    Raises:
        ModelRefusedError: it takes too long.
    """
    for num_images in (1, limits.batch_size):
        tries = (_seconds(predictor, num_images, clock) for _ in range(_NUM_TRIES))
        fastest_s = float("inf")
        for seconds in tries:
            fastest_s = min(fastest_s, seconds)
            if fastest_s <= limits.batch_s:
                break
        else:
            raise ModelRefusedError(
                f"a batch of {limits.batch_size} images may take {limits.batch_s:g} s, so that "
                f"health checks and requests are answered in time; {num_images} took "
                f"{fastest_s:.2g} s"
            )


def _seconds(predictor: Predictor, num_images: int, clock: Callable[[], float]) -> float:
    shape = (num_images, predictor.image_size, predictor.image_size, 3)
    images = np.zeros(shape, np.uint8)
    started_s = clock()
    predictor.predict(images, on_one_thread=True)
    return clock() - started_s


def check_memory(memory_mb: float, limits: ModelLimits) -> None:
    """Check the memory of a loaded model, in MiB.

    Raises:
        ModelRefusedError: it takes too much.
    """
    if memory_mb > limits.memory_mb:
        raise ModelRefusedError(
            f"the model and a batch of {limits.batch_size} images may take max_model_mb "
            f"({limits.memory_mb:g}) MiB of memory; got {memory_mb:.0f}"
        )


def _memory_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def smoke_images(image_size: int) -> Images:
    """Draw black, white, a gradient and noise: uint8 (4, image_size, image_size, 3)."""
    shape = (image_size, image_size, 3)
    ramp = np.linspace(0, 255, image_size).astype(np.uint8)
    gradient = np.broadcast_to(ramp[None, :, None], shape)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), gradient, noise])


def check_answers(predictor: Predictor) -> None:
    """Check a model's answers to `smoke_images`.

    Raises:
        ModelRefusedError: the model fails, or its answers are not probabilities.
    """
    images = smoke_images(predictor.image_size)
    try:
        probabilities = predictor.predict(images)
    except Exception as error:  # onnxruntime's errors share no public base class
        raise ModelRefusedError(f"the model fails on a smoke prediction: {error}") from error
    expected = (len(images), len(predictor.class_names))
    if probabilities.shape != expected:
        raise ModelRefusedError(
            f"a smoke prediction must have the shape {expected}; got {probabilities.shape}"
        )
    _check_probabilities(probabilities)


def _check_probabilities(probabilities: Probabilities) -> None:
    if not np.isfinite(probabilities).all():
        raise ModelRefusedError("a smoke prediction must be finite; got NaN or infinity")
    low, high = float(probabilities.min()), float(probabilities.max())
    if low < 0 or high > 1 + _SUM_TOLERANCE:
        raise ModelRefusedError(f"probabilities must be in 0..1; got {low:g} to {high:g}")
    sums = probabilities.sum(axis=1)
    if np.abs(sums - 1).max() > _SUM_TOLERANCE:
        sums_text = ", ".join(f"{total:.4g}" for total in sums)
        raise ModelRefusedError(f"probabilities must sum to 1; got sums of {sums_text}")
