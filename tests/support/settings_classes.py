"""The settings classes, and what they say of a mistake."""

from typing import Any

import pytest
from pydantic import ValidationError

from mask_ray.config import (
    DataSettings,
    DemoSettings,
    EvaluateSettings,
    ImageLimits,
    PipelineSettings,
    PromotionRule,
    ServeSettings,
    Settings,
    TrainSettings,
    explain,
)
from mask_ray.config.promote import PromoteSettings

DATA = {"data": "photos"}

# What each class cannot do without.
DATA_OF: dict[type[Settings], dict[str, Any]] = {
    ImageLimits: {},
    DataSettings: DATA,
    TrainSettings: DATA,
    EvaluateSettings: DATA,
    ServeSettings: {},
    DemoSettings: {},
    PromotionRule: {},
    PromoteSettings: {"version": "3"},
    PipelineSettings: DATA,
}


def mistake(settings_class: type[Settings], given: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        settings_class(**given)
    return explain(caught.value)
