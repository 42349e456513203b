"""Settings of the command-line client.

Not part of the facade `mask_ray.config`, which needs no pydantic_settings.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, field_validator
from pydantic_settings import CliPositionalArg

from mask_ray.config.base import Settings
from mask_ray.config.serving import DEFAULT_PORT

TOKEN_VARIABLE = "MASK_RAY_TOKEN"


def _check_name(name: str) -> str:
    if not name:
        raise ValueError("must name a file or a folder; got an empty string")
    return name


# pydantic's own check of strings rejects file names that are not UTF-8.
Name = Annotated[str, PlainValidator(_check_name)]


class ClientSettings(Settings):
    """Classify image files with a running endpoint, and write one row for each file.

    A folder means all images in it and below it. The bearer token, if needed, is read from the
    environment variable MASK_RAY_TOKEN or from a file.
    """

    paths: CliPositionalArg[list[Name]] = Field(
        min_length=1, description="Image files, and folders of them."
    )
    url: str = Field(f"http://127.0.0.1:{DEFAULT_PORT}", description="URL of the endpoint.")
    output: Path | None = Field(
        None, description="File for the rows; overwritten (default: standard output)."
    )
    format: Literal["auto", "csv", "json"] = Field(
        "auto",
        description="csv, or json (one object a line). auto: json if the output ends in .json or "
        ".jsonl, else csv.",
    )
    concurrency: int = Field(8, ge=1, le=256, description="Requests at a time.")
    timeout_s: float = Field(30, gt=0, description="Timeout of one answer, in seconds.")
    retries: int = Field(
        8,
        ge=0,
        le=100,
        description="Retries of a file when the server is busy or unreachable. Waits as long as "
        "Retry-After says, if that is at most 60 s.",
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="Below this probability the label is uncertain."
    )
    token_file: Path | None = Field(
        None, description="File with the bearer token, in place of MASK_RAY_TOKEN."
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not re.match(r"https?://[^/]", url):
            raise ValueError(f"must begin with http:// or https://; got {url}")
        return url.rstrip("/").removesuffix("/predict")

    @property
    def is_json(self) -> bool:
        """Whether to write rows as JSON."""
        if self.format != "auto":
            return self.format == "json"
        return self.output is not None and self.output.suffix in (".json", ".jsonl")
