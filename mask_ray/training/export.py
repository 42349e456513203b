"""The file of a trained model that is registered: calibrated, in float32 or int8."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.data import Dataset

from mask_ray import evaluation, tracking
from mask_ray.config import SplitName, TrainSettings
from mask_ray.data import ImageData
from mask_ray.models import onnx_edit, quantize
from mask_ray.models.predictor import Images, Predictor
from mask_ray.progress import say
from mask_ray.training import checkpoints


@dataclass(frozen=True)
class Export:
    """A model file, ready to be registered.

    Args:
        onnx: The file.
        temperature: What its logits are divided by, in the file.
        examination: What it says of the test split.
        metadata: What its version is to tell of how it was chosen.
    """

    onnx: Path
    temperature: float
    examination: evaluation.Examination
    metadata: dict[str, Any] = field(default_factory=dict)

    def predictor(self) -> Predictor:
        """The file as a function, on all cores of this machine."""
        return _predictor(self.onnx)


def choose(
    settings: TrainSettings,
    images: ImageData,
    splits: dict[SplitName, Dataset],
    trained: Path,
    scratch: Path,
    tracked: tracking.Run,
) -> Export:
    """Calibrate a trained model; take its int8 version where that is wanted, as good, and faster.

    Args:
        settings: Of the run.
        images: Those of the run.
        splits: The same images, decoded.
        trained: The checkpoint's folder, with the model as ONNX and as `.keras`.
        scratch: Gets the model files, among them `checkpoints.KERAS_FILE`, calibrated as the ONNX
            file of 32-bit floats is.
        tracked: The MLflow run; it gets what both files were compared by.
    """
    onnx = trained / checkpoints.ONNX_FILE
    float32 = _calibrated(settings, images, splits, onnx, scratch / "float32.onnx")
    encoded = (trained / checkpoints.KERAS_FILE).read_bytes()
    calibrated = onnx_edit.keras_with_temperature(encoded, float32.temperature)
    (scratch / checkpoints.KERAS_FILE).write_bytes(calibrated)
    if not settings.quantize:
        return float32
    examples = splits["train"].take_batch(quantize.NUM_CALIBRATION_IMAGES)["image"]
    uncalibrated = scratch / "uncalibrated.onnx"
    quantize.quantize(onnx, uncalibrated, examples)
    int8 = _calibrated(settings, images, splits, uncalibrated, scratch / "int8.onnx")
    return _better_of(float32, int8, examples, tracked)


def of_version(settings: TrainSettings, images: ImageData, version: str) -> Export:
    """What a run has registered already, examined once more.

    Args:
        settings: Of the run.
        images: Those of the run.
        version: Of the model `settings.register_as`.
    """
    onnx = tracking.resolve_model(f"models:/{settings.register_as}/{version}").path
    return Export(onnx, _predictor(onnx).temperature, _examined(settings, images, onnx))


def _calibrated(
    settings: TrainSettings,
    images: ImageData,
    splits: dict[SplitName, Dataset],
    uncalibrated: Path,
    onnx: Path,
) -> Export:
    """The model with the temperature that the validation split asks for, in a file of its own."""
    validated = evaluation.predict(splits["val"], _predictor(uncalibrated))
    temperature = evaluation.fit_temperature(validated)
    onnx.write_bytes(onnx_edit.with_temperature(uncalibrated.read_bytes(), temperature))
    return Export(onnx, temperature, _examined(settings, images, onnx))


def _examined(settings: TrainSettings, images: ImageData, onnx: Path) -> evaluation.Examination:
    return evaluation.examine(images.named("test"), _predictor(onnx), settings.robustness_images)


def _predictor(onnx: Path) -> Predictor:
    return Predictor(onnx, num_threads=os.cpu_count() or 1)


def _better_of(float32: Export, int8: Export, examples: Images, tracked: tracking.Run) -> Export:
    figures = _figures([float32, int8], examples)
    against = quantize.reason_against(*figures)
    by_name = {name: asdict(own) for name, own in zip(("float32", "int8"), figures, strict=True)}
    tracked.log_metrics(evaluation.flatten(by_name))
    say(f"int8 is not served: {against}" if against else f"int8 is served: {by_name}")
    chosen, name = (float32, "float32") if against else (int8, "int8")
    return replace(chosen, metadata={"quantization": by_name | {"served": name}})


def _figures(exports: list[Export], examples: Images) -> list[quantize.Figures]:
    predictors = [Predictor(export.onnx) for export in exports]
    rates = quantize.images_per_second(predictors, examples)
    return [
        quantize.Figures(
            accuracy=evaluation.compute_metrics(export.examination.predictions)["accuracy"],
            images_per_second=round(rate, 1),
        )
        for export, rate in zip(exports, rates, strict=True)
    ]
