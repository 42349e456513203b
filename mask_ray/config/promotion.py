"""When a new version of a model takes the champion's place."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mask_ray.config.base import MayChange, Settings, none_for_auto
from mask_ray.config.data import Source


class PromotionRule(Settings):
    """What a version must show on held-out images to become the champion."""

    promotion_metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "log_loss"], MayChange()
    ] = Field(
        "accuracy",
        description="Metric on which a new version must beat the champion, on the test splits of "
        "both and the reference set together. For log_loss, lower is better.",
    )
    promotion_margin: Annotated[float, MayChange()] = Field(
        0.0,
        ge=0,
        description="How much better than the champion a new version must be: 0.005 is half a "
        "point.",
    )
    promotion_tolerance: Annotated[float, MayChange()] = Field(
        0.005,
        ge=0,
        description="How much worse than the champion a new version may be on one of those splits "
        "or on the reference set: 0.005 is half a point.",
    )
    min_recall: Annotated[float | None, BeforeValidator(none_for_auto), MayChange()] = Field(
        None,
        ge=0,
        le=1,
        description="Minimum recall of each class, required even without a champion (default: more "
        "than chance, which is 1 / the number of classes).",
    )
    reference_data: Annotated[Source | None, MayChange()] = Field(
        None,
        description="Source of labelled images on which versions are also compared. It is stored "
        "with the registered model, and used by all later comparisons.",
    )
