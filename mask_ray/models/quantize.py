"""Quantize a model to 8-bit integers, and decide whether that pays on this machine.

Static quantization: weights per output channel, activations by their range on training
images. See https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from mask_ray.models.file_format import INPUT_NAME
from mask_ray.models.predictor import Images, Predictor

NUM_CALIBRATION_IMAGES = 512
MAX_ACCURACY_LOSS = 0.002

# A usual batch of a serving replica.
_BATCH_SIZE = 8
_NUM_ROUNDS = 15

# Not the head: it takes next to no time, and probabilities in steps of 1/255 would not sum to 1.
_QUANTIZED = ["Conv", "Clip", "Add", "GlobalAveragePool"]


@dataclass(frozen=True)
class Figures:
    """Accuracy and speed of a model file.

    Args:
        accuracy: Share of correct answers on the test split, 0..1.
        images_per_second: Rate in batches of 8, on one thread of this machine.
    """

    accuracy: float
    images_per_second: float


def quantize(float32: Path, int8: Path, images: Images) -> None:
    """Write an int8 version of a model, with the same inputs, outputs and metadata.

    Args:
        float32: File of `onnx_export.classifier_onnx`.
        int8: File to write.
        images: Training images, uint8 of shape (N, image_size, image_size, 3), N >= 1.
    """
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # All sizes are known, so symbolic shape inference, which needs SymPy, is not needed.
        quant_pre_process(float32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            int8,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=_QUANTIZED,
            # The fastest pair of types that ONNX Runtime has for x86 CPUs.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits: CPUs without VNNI add pairs of products in 16 bits, which 8 would overflow.
            reduce_range=True,
        )


class _Batches(CalibrationDataReader):
    def __init__(self, images: Images) -> None:
        starts = range(0, len(images), _BATCH_SIZE)
        self._batches: Iterator[Images] = (images[at : at + _BATCH_SIZE] for at in starts)

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def images_per_second(predictors: list[Predictor], images: Images) -> list[float]:
    """Measure how fast each predictor classifies batches of 8.

    They take turns, so that other work on the machine slows all of them alike.

    Args:
        predictors: Predictors for images of the same size.
        images: uint8 of shape (N, image_size, image_size, 3), N >= 1.
    """
    batch = images[:_BATCH_SIZE]
    seconds: list[list[float]] = [[] for _ in predictors]
    for _ in range(_NUM_ROUNDS):
        for predictor, times in zip(predictors, seconds, strict=True):
            started = time.perf_counter()
            predictor.predict(batch)
            times.append(time.perf_counter() - started)
    return [len(batch) / median(times) for times in seconds]


def reason_against(float32: Figures, int8: Figures) -> str | None:
    """Return why the float32 model should be kept; None if the int8 model should replace it."""
    loss = float32.accuracy - int8.accuracy
    # Accuracies are ratios of integers; their difference has a rounding error.
    if loss > MAX_ACCURACY_LOSS + 1e-9:
        return (
            f"its test accuracy is {int8.accuracy:.4f} in place of {float32.accuracy:.4f}, "
            f"and may be at most {MAX_ACCURACY_LOSS:g} lower"
        )
    if int8.images_per_second <= float32.images_per_second:
        return (
            f"it is not faster here: {int8.images_per_second:.0f} images/s in place of "
            f"{float32.images_per_second:.0f}"
        )
    return None
