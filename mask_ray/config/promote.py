"""Settings of `jobs.promote`.

Not part of the facade `mask_ray.config`, which needs no pydantic_settings.
"""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from mask_ray.config.base import DEFAULT_MODEL_NAME, MODEL_NAME
from mask_ray.config.data import Source
from mask_ray.config.promotion import PromotionRule


class PromoteSettings(PromotionRule):
    """Make a version the champion if it beats the current one, or roll back to the previous one."""

    version: CliPositionalArg[str | None] = Field(
        None, pattern=r"^[1-9]\d*$", description="Number of the version, such as 3."
    )
    register_as: str = Field(
        DEFAULT_MODEL_NAME,
        min_length=1,
        pattern=MODEL_NAME,
        description="Name of the registered model: letters, digits, spaces and _ . - + ( ).",
    )
    data: Source | None = Field(
        None,
        description="Images to compare on (default: the data of the version's run). They are split "
        "as in that run.",
    )
    force: bool = Field(False, description="Make it the champion without a comparison.")
    rollback: bool = Field(
        False,
        description="Instead of a version: make the previous champion the champion again. Repeat "
        "it to go further back.",
    )

    @model_validator(mode="after")
    def _version_or_rollback(self) -> Self:
        if self.rollback == (self.version is not None):
            received = "both" if self.rollback else "neither"
            raise ValueError(f"give either a version or --rollback; got {received}")
        return self
