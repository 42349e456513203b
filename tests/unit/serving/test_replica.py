"""What a replica takes for a hang, and how it has the images of a request decoded. No Ray here."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mask_ray.config import ServeSettings
from mask_ray.images.decoders import DecodersError
from mask_ray.serving.memory import OverBudgetError
from mask_ray.serving.replica import Classifier


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
