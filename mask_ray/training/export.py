"""Make the model file that a run registers: calibrated, in float32 or int8."""

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
    """A model file that is ready to be registered.

    Args:
        onnx: Path of the file.
        temperature: Number by which the file divides its logits.
        examination: Predictions of the file on the test split, and what follows from them.
        metadata: Metadata for the registered version: how the file was chosen.
    """

    onnx: Path
    temperature: float
    examination: evaluation.Examination
    metadata: dict[str, Any] = field(default_factory=dict)

    def predictor(self) -> Predictor:
        """Load the file, to run on all cores of this machine."""
        return _predictor(self.onnx)


def choose(
    settings: TrainSettings,
    images: ImageData,
    splits: dict[SplitName, Dataset],
    trained: Path,
    scratch: Path,
    tracked: tracking.Run,
) -> Export:
    """Calibrate a trained model; choose int8 if `quantize` is on and int8 is as good and faster.

    Args:
        settings: Settings of the run.
        images: Images of the run.
        splits: The same images, decoded.
        trained: Folder of the last checkpoint, with the model as ONNX and as `.keras`.
        scratch: Folder for the model files; `checkpoints.KERAS_FILE` gets the same temperature
            as the float32 ONNX file.
        tracked: The MLflow run, which gets the figures that were compared.
    """
    onnx = trained / checkpoints.ONNX_FILE
    num_test = images.summary.counts["test"].total()
    say(f"calibrating the model, and evaluating it on {num_test} test images")
    float32 = _calibrated(settings, images, splits, onnx, scratch / "float32.onnx")
    encoded = (trained / checkpoints.KERAS_FILE).read_bytes()
    calibrated = onnx_edit.keras_with_temperature(encoded, float32.temperature)
    (scratch / checkpoints.KERAS_FILE).write_bytes(calibrated)
    if not settings.quantize:
        return float32
    say("making an int8 model, and evaluating it too")
    examples = splits["train"].take_batch(quantize.NUM_CALIBRATION_IMAGES)["image"]
    uncalibrated = scratch / "uncalibrated.onnx"
    quantize.quantize(onnx, uncalibrated, examples)
    int8 = _calibrated(settings, images, splits, uncalibrated, scratch / "int8.onnx")
    return _better_of(float32, int8, examples, tracked)


def of_version(settings: TrainSettings, images: ImageData, version: str) -> Export:
    """Examine again the version that a run has registered.

    Args:
        settings: Settings of the run.
        images: Images of the run.
        version: Version of the model `settings.register_as`.
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
    """Write the model with the temperature that fits the validation split best; examine it."""
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
    say(f"int8 is not used: {against}" if against else f"int8 is used: {_gain(*figures)}")
    chosen, name = (float32, "float32") if against else (int8, "int8")
    return replace(chosen, metadata={"quantization": by_name | {"served": name}})


def _gain(float32: quantize.Figures, int8: quantize.Figures) -> str:
    return (
        f"test accuracy {int8.accuracy:.4f}, in float32 {float32.accuracy:.4f}; "
        f"{int8.images_per_second:.0f} images/s, in float32 {float32.images_per_second:.0f}"
    )


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
