"""Which failures of a worker are worth a restart of the group."""

from typing import Any

import pytest
from ray.train import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from mask_ray.config import MaskRayError
from mask_ray.horovod import trainer
from mask_ray.ray_internals import failure_policy


@pytest.fixture
def policy() -> Any:
    """For a run that may be restarted once."""
    return failure_policy(FailureConfig(max_failures=1), trainer._is_for_user)


def failed(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("a worker failed", {0: error})


def test_an_error_is_worth_as_many_restarts_as_allowed(policy: Any) -> None:
    decisions = [policy.make_decision(failed(ZeroDivisionError())).name for _ in range(2)]
    assert decisions == ["RETRY", "RAISE"]


def test_an_error_that_the_user_can_mend_is_not_worth_a_restart(policy: Any) -> None:
    assert policy.make_decision(failed(MaskRayError("the disk is full"))).name == "RAISE"
