"""What the health check of a replica takes for a hang, and when its work ends. No Ray here."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mask_ray.config import ServeSettings
from mask_ray.images.decoders import DecodersError
from mask_ray.serving.memory import OverBudgetError
from mask_ray.serving.replica import Classifier, _all_or_none


def blocked(**decoding: bool) -> Any:
    """A replica whose trial inference waits behind something that does not end."""

    async def wait() -> None:
        await asyncio.Event().wait()

    replica: Any = Classifier.__new__(Classifier)
    replica.settings = ServeSettings(health_check_timeout_s=0.05)
    replica.is_ready = True
    replica._progress = 0
    replica._decoding = SimpleNamespace(**{"is_broken": False, "is_in_time": False} | decoding)
    replica._try_inference = wait
    return replica


def test_an_image_within_its_time_is_slow_and_no_hang() -> None:
    replica = blocked(is_in_time=True)
    asyncio.run(replica.check_health())
    assert replica.is_ready


def test_what_ends_nothing_is_a_hang() -> None:
    replica = blocked()
    with pytest.raises(TimeoutError):
        asyncio.run(replica.check_health())
    assert not replica.is_ready


def test_a_replica_that_cannot_decode_is_not_healthy() -> None:
    replica = blocked(is_broken=True)
    with pytest.raises(DecodersError):
        asyncio.run(replica.check_health())
    assert not replica.is_ready


def test_the_other_images_of_a_refused_request_are_not_decoded() -> None:
    ended: list[str] = []

    async def refuse() -> None:
        raise OverBudgetError("full")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def ask() -> None:
        with pytest.raises(OverBudgetError):
            await _all_or_none([wait(), refuse(), wait()])
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["cancelled"] * 2
