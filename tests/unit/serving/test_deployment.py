"""What Ray is asked to reserve for a replica, and how long a new version is tried."""

from typing import Any

import pytest

from mask_ray.config import ServeSettings
from mask_ray.serving.deployment import _deployment_decorator, _followed_alias

MIB = 2**20


@pytest.mark.parametrize(
    ("given", "expected_mb"),
    [
        ({}, 512 + 64 + 1280),
        ({"num_threads": 2}, 512 + 2 * 64 + 1280),
        (
            {
                "max_decode_bytes": 240 * MIB,
                "max_image_bytes": 10 * MIB,
                "request_memory_bytes": 400 * MIB,
            },
            512 + 64 + 400,
        ),
        ({"sample_share": 0.1, "sample_path": "/samples"}, 512 + 64 + 1280 + 256),
    ],
)
def test_a_replica_reserves_the_memory_that_its_settings_allow(
    given: dict[str, Any], expected_mb: int
) -> None:
    class Replica:
        pass

    deployment = _deployment_decorator(ServeSettings(**given))(Replica)

    assert deployment.ray_actor_options is not None
    assert deployment.ray_actor_options["memory"] == expected_mb * MIB


@pytest.mark.parametrize(("model_poll_s", "expected_s"), [(1, 6), (10, 10), (600, 600)])
def test_a_trial_outlasts_two_health_checks_and_a_poll(model_poll_s: int, expected_s: int) -> None:
    settings = ServeSettings(
        model_uri="models:/masks@champion",
        model_poll_s=model_poll_s,
        health_check_period_s=1,
        health_check_timeout_s=2,
    )
    followed = _followed_alias(settings, "1", ("with", "without"))
    assert followed is not None
    assert followed.trial_s == expected_s
