"""Settings of an evaluation and of its report."""

from typing import Annotated, Literal

from pydantic import Field

from mask_ray.config.base import DEFAULT_MODEL_URI, MayChange, Settings
from mask_ray.config.data import DataSettings


class ReportSettings(Settings):
    """What an evaluation report holds beyond metrics of the unchanged images."""

    robustness_images: Annotated[int, MayChange()] = Field(
        50,
        ge=0,
        le=100_000,
        description="Number of test images that are also evaluated blurred, darkened, turned ..., "
        "in 18 variants; 0: none.",
    )


class EvaluateSettings(DataSettings, ReportSettings):
    """Evaluate a model file on labelled images and print its metrics."""

    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI, or path of an ONNX file."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Split to evaluate on."
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="Folder for evaluation.html and evaluation.json; created if missing.",
    )
