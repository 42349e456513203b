"""Settings of batch prediction.

Not part of the facade `mask_ray.config`, which needs no pydantic_settings.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator
from pydantic_settings import CliPositionalArg

from mask_ray.config.base import DEFAULT_MODEL_URI, none_for_auto
from mask_ray.config.images import ImageLimits
from mask_ray.config.uris import Uri


def _check_source(source: Any) -> Uri:
    if not isinstance(source, str) or not source:
        raise ValueError(f"must be a source of images; got {source!r}")
    return Uri(source)


# Without secrets for all but those who open it.
_OneSource = Annotated[str, PlainValidator(_check_source)]

OutputFormat = Literal["parquet", "csv"]


class PredictSettings(ImageLimits):
    """Classify many images with a registered model, and write one row for each image.

    After a kill or Ctrl-C, the same command resumes where it stopped.
    """

    source: CliPositionalArg[_OneSource] = Field(
        description="Folder of images, searched with all its sub-folders; or an archive, URL, "
        "manifest or URI, as in jobs.train --data.",
    )
    output: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        description="File for the rows. A submitted job runs in a copy of the working directory: "
        "give an absolute path."
    )
    format: Annotated[OutputFormat | None, BeforeValidator(none_for_auto)] = Field(
        None, description="parquet or csv (default: the suffix of output)."
    )
    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI or path of an ONNX file."
    )
    num_predictors: Annotated[int | None, BeforeValidator(none_for_auto)] = Field(
        None,
        ge=1,
        description="Processes that decode and classify, one core each (default: one for each "
        "free core of the cluster).",
    )

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.format is None and self.output.suffix not in (".parquet", ".csv"):
            raise ValueError(
                f"output must end in .parquet or .csv if format is not given; got {self.output}"
            )
        return self

    @property
    def output_format(self) -> OutputFormat:
        """Format as given, or from the suffix of the output."""
        return self.format or ("csv" if self.output.suffix == ".csv" else "parquet")
