"""Settings of an evaluation and of its report."""

from typing import Annotated, Literal

from pydantic import Field

from mask_ray.config.base import DEFAULT_MODEL_URI, MayChange, Settings
from mask_ray.config.data import DataSettings


class ReportSettings(Settings):
    """What an evaluation report holds beyond figures of the images as they are."""

    robustness_images: Annotated[int, MayChange()] = Field(
        50,
        ge=0,
        le=100_000,
        description="Test images that are also blurred, darkened, turned ..., at 18 strengths in "
        "all, to see how the model does then; 0: none.",
    )


class EvaluateSettings(DataSettings, ReportSettings):
    """Evaluate a model file on labelled images and print its metrics."""

    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI or path of an ONNX file."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Which images of the data set to evaluate on."
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="Folder, made if need be, for the report: evaluation.html and evaluation.json.",
    )
