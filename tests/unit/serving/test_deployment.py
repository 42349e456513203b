"""What Ray is asked to reserve for a replica."""

from typing import Any

import pytest

from mask_ray.config import ServeSettings
from mask_ray.serving.deployment import _deployment_decorator

MIB = 2**20


@pytest.mark.parametrize(
    ("given", "expected_mb"),
    [
        ({}, 512 + 64 + 1280),
        ({"num_threads": 2}, 512 + 2 * 64 + 1280),
        ({"max_decode_bytes": 300 * MIB, "request_memory_bytes": 400 * MIB}, 512 + 64 + 400),
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
