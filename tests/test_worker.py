"""What a worker derives from its settings before it trains."""

from pathlib import Path
from typing import Any

import pytest

from mask_ray import worker
from mask_ray.config import TrainSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("precision", "capability", "policy"),
    [
        ("auto", (0, 0), "float32"),
        ("auto", (7, 5), "float32"),
        ("auto", (8, 0), "mixed_bfloat16"),
        ("auto", (9, 0), "mixed_bfloat16"),
        ("auto", (12, 0), "mixed_bfloat16"),
        ("float32", (9, 0), "float32"),
        ("bfloat16", (0, 0), "mixed_bfloat16"),
        ("bfloat16", (7, 5), "mixed_bfloat16"),
    ],
)
def test_the_precision_is_the_gpu_s_unless_given(
    precision: str, capability: tuple[int, int], policy: str
) -> None:
    assert worker.dtype_policy(precision, capability) == policy


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ({}, {}),
        ({"fusion_threshold_mb": 0}, {"HOROVOD_FUSION_THRESHOLD": "0"}),
        ({"fusion_threshold_mb": 1.5}, {"HOROVOD_FUSION_THRESHOLD": "1572864"}),
        ({"cycle_time_ms": 0.5}, {"HOROVOD_CYCLE_TIME": "0.5"}),
        ({"timeline": True}, {"HOROVOD_TIMELINE": "/tmp/timeline.json"}),
    ],
)
def test_horovod_is_told_what_is_given_and_nothing_else(
    given: dict[str, Any], environment: dict[str, str]
) -> None:
    settings = TrainSettings(data="photos", **given)
    assert worker._horovod_environment(settings, Path("/tmp/timeline.json")) == environment
