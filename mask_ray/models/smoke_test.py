"""Check that a model file can serve: it loads, and it answers a few images with probabilities."""

from pathlib import Path

import numpy as np

from mask_ray.config import MaskRayError
from mask_ray.models.predictor import Images, ModelFileError, Predictor, Probabilities

# Rows of float32 softmax sum to 1 within 1e-6; int8 models' output is float32 too.
_SUM_TOLERANCE = 1e-3


class ModelRefusedError(MaskRayError):
    """The model must not be served; the message gives the reason, without paths."""


def load_checked(
    path: Path, num_threads: int = 1, class_names: tuple[str, ...] | None = None
) -> Predictor:
    """Load a model, and check its answers to a few fixed images.

    Args:
        path: ONNX file.
        num_threads: Threads of the predictor, which is shared.
        class_names: Class names that the model must have, in this order; None allows any.

    Raises:
        ModelRefusedError: the file cannot be loaded, has other classes, or its answers are not
            probabilities.
    """
    try:
        predictor = Predictor(path, num_threads, is_shared=True)
    except ModelFileError as error:
        raise ModelRefusedError(str(error).replace(str(path), path.name)) from error
    if class_names is not None and predictor.class_names != class_names:
        raise ModelRefusedError(
            f"class_names must be {', '.join(class_names)}, which are served now, unless "
            f"allow_other_classes is set; got {', '.join(predictor.class_names)}"
        )
    check_answers(predictor)
    return predictor


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
