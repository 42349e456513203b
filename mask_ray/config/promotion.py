"""When a new version of a model takes the champion's place."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mask_ray.config.base import DEFAULT_MODEL_NAME, MayChange, Settings
from mask_ray.config.data import Source


class PromotionRule(Settings):
    """What a version must show on the test split to become the champion."""

    promotion_metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "log_loss"], MayChange()
    ] = Field(
        "accuracy",
        description="By what a new version must beat the champion on the test split; of log_loss, "
        "lower is better.",
    )
    promotion_margin: Annotated[float, MayChange()] = Field(
        0.0, ge=0, description="It must be better by more than this: 0.005 is half a point."
    )
    min_recall: Annotated[float, MayChange()] = Field(
        0.0,
        ge=0,
        le=1,
        description="Recall that it must have for each class, also where there is no champion.",
    )


class PromoteSettings(PromotionRule):
    """What `jobs.promote` is asked to do."""

    version: str | None = Field(
        None, pattern=r"^[1-9]\d*$", description="Number of the version, such as 3."
    )
    register_as: str = Field(
        DEFAULT_MODEL_NAME,
        min_length=1,
        pattern=r"^[^/:@]+$",
        description="Name of the registered model.",
    )
    data: Source | None = Field(
        None,
        description="Images to compare on (default: those that the version's run read). They are "
        "split as in that run.",
    )
    force: bool = Field(False, description="Make it the champion without a comparison.")
    rollback: bool = Field(
        False,
        description="Instead of a version: make the champion before the present one champion "
        "again; once more, the one before that.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.rollback == (self.version is not None):
            raise ValueError(
                "give either a version or --rollback; got "
                + ("both" if self.rollback else "neither")
            )
        return self
