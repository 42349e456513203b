"""Settings of the pipeline."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from mask_ray.config.training import RunSettings


class PipelineSettings(RunSettings):
    """Fetch, inspect, train, evaluate, promote, deploy, smoke-test: a nested MLflow run per stage.

    A stage with the same inputs as a finished one is skipped. After a failure, a kill or Ctrl-C,
    the same command resumes.
    """

    deploy: bool = Field(
        True, description="Have the service switch to the champion, and test it over HTTP."
    )
    serve: bool = Field(
        False, description="Start the service in this Ray if none answers at its address."
    )
    serve_config: Path = Field(
        Path("serve_config.yaml"), description="Configuration to start the service with."
    )
    url: str | None = Field(
        None, description="Address of the service (default: host and port of serve_config)."
    )
    deploy_timeout_s: float = Field(
        180, gt=0, description="Longest wait for the service to answer with the champion."
    )
    smoke_images: int = Field(
        16, ge=1, le=1000, description="Images of the test split to send to the service."
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]", url):
            raise ValueError(f"must begin with http:// or https://; got {url}")
        return url and url.rstrip("/")

    @model_validator(mode="after")
    def _serves_what_is_promoted(self) -> Self:
        if self.serve and not (self.deploy and self.promote):
            raise ValueError("serve must be off with --no-deploy or --no-promote; got it on")
        return self
