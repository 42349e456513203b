"""What a replica takes for a hang, and how it has the images of a request decoded. No Ray here."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mask_ray.config import ServeSettings
from mask_ray.images.decoders import DecodersError
from mask_ray.serving.memory import REQUEST_LEASE, MemoryBudget, OverBudgetError
from mask_ray.serving.replica import Classifier
from mask_ray.serving.versions.rollout import FailedChecks


def blocked(**decoding: bool) -> Any:
    """A replica whose trial inference waits behind something that does not end."""

    async def wait() -> None:
        await asyncio.Event().wait()

    replica: Any = Classifier.__new__(Classifier)
    replica.settings = ServeSettings(health_check_timeout_s=0.05)
    replica.is_ready = True
    replica._progress = 0
    replica._models = SimpleNamespace(
        serving=SimpleNamespace(champion=SimpleNamespace(version="1"))
    )
    replica._failed_checks = FailedChecks()
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


def test_a_replica_that_cannot_decode_is_not_healthy_and_no_version_is_to_blame() -> None:
    def fail() -> None:
        raise DecodersError("no process for decoding starts")

    replica = blocked(is_broken=True)
    replica._decoding.recover = fail
    for _ in range(2):
        with pytest.raises(DecodersError):
            asyncio.run(replica.check_health())
        assert not replica.is_ready
    assert replica._is_sound("1")


def test_a_replica_that_can_decode_again_is_healthy() -> None:
    async def infer() -> None:
        pass

    def recover() -> None:
        replica._decoding.is_broken = False

    replica = blocked(is_broken=True)
    replica.settings = ServeSettings(health_check_timeout_s=600)
    replica._decoding.recover = recover
    replica._try_inference = infer
    asyncio.run(replica.check_health())
    assert replica.is_ready and not replica._decoding.is_broken


def test_two_failures_in_a_row_are_blamed_on_the_version() -> None:
    replica = blocked()
    for is_sound in (True, False):
        with pytest.raises(TimeoutError):
            asyncio.run(replica.check_health())
        assert replica._is_sound("1") is is_sound
    assert replica._is_sound("2")


def test_memory_of_a_request_is_held_until_the_batcher_has_dropped_its_images() -> None:
    dropped: list[Any] = []

    async def ask(items: list[Any], on_dropped: Any) -> list[Any]:
        dropped.extend(on_dropped for _ in items)
        return items

    replica = blocked()
    replica._batcher = SimpleNamespace(ask=ask)
    budget = MemoryBudget(6_400)
    lease = budget.lease()
    lease.grow(100)
    REQUEST_LEASE.set(lease)
    try:
        assert asyncio.run(replica._ask([1, 2])) == [1, 2]
    finally:
        REQUEST_LEASE.set(None)
    lease.release()
    for on_dropped in dropped:
        assert budget.held_bytes == 100
        on_dropped()
    assert budget.held_bytes == 0


def test_slow_images_of_one_request_do_not_refuse_each_other() -> None:
    waiting: list[bytes] = []
    prepared: list[bytes] = []

    async def prepare(image: bytes, _: int) -> bytes:
        if waiting or image == b"refused":
            raise OverBudgetError("full")
        waiting.append(image)
        await asyncio.sleep(0)
        prepared.append(waiting.pop())
        return image

    async def answer(items: list[Any]) -> list[Any]:
        return [image for _, image in items]

    replica = blocked()
    replica._decoding = SimpleNamespace(prepare=prepare)
    replica._batcher = SimpleNamespace(ask=answer)
    predictor: Any = SimpleNamespace(image_size=96)

    images = [b"a", b"b", b"c"]
    assert asyncio.run(replica._outcomes(predictor, images)) == images
    prepared.clear()
    with pytest.raises(OverBudgetError):
        asyncio.run(replica._outcomes(predictor, [b"a", b"refused", b"c"]))
    assert prepared == [b"a"]
