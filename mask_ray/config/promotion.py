"""When a new version of a model takes the champion's place."""

from typing import Annotated, Literal

from pydantic import Field

from mask_ray.config.base import MayChange, Settings


class PromotionRule(Settings):
    """What a version must show on the test split to become the champion."""

    promotion_metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "log_loss"], MayChange()
    ] = Field(
        "accuracy",
        description="Metric on which a new version must beat the champion, on the test split. For "
        "log_loss, lower is better.",
    )
    promotion_margin: Annotated[float, MayChange()] = Field(
        0.0,
        ge=0,
        description="It must be better by more than this margin: 0.005 is half a point.",
    )
    min_recall: Annotated[float, MayChange()] = Field(
        0.0,
        ge=0,
        le=1,
        description="Minimum recall of each class, required even without a champion.",
    )
