"""The two lanes of decoding. The processes are real."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from benchmarks.support import costly_files
from mask_ray.config import ServeSettings
from mask_ray.images.decode import Examined, decode_resized
from mask_ray.images.decoders import Decoder, DecodersError
from mask_ray.images.errors import DecodingStoppedError, ImageError, ImageTooCostlyError
from mask_ray.serving.decoding import ImageDecoding, _result, _submit
from mask_ray.serving.memory import REQUEST_LEASE, MemoryBudget, NeverFitsError, OverBudgetError
from tests.support import image_files

SIZE = 32


class Replica:
    def __init__(self, memory_bytes: int = 2**30, **settings: Any) -> None:
        self.num_decoded = 0
        self.memory = MemoryBudget(memory_bytes)
        self.decoding = ImageDecoding(ServeSettings(**settings), self.memory, self._count)

    def _count(self, _: float) -> None:
        self.num_decoded += 1

    def run(self, ask: Callable[[ImageDecoding], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(ask(self.decoding))


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    replica = Replica()
    replica.decoding.start()
    yield replica
    replica.decoding.close()


def hurry(decoder: Decoder, seconds: float) -> None:
    """Give up what the process decodes next, and leave other processes the time they may take."""
    assert decoder._process is not None
    decoder._process.connection.settimeout(seconds)


def slow_photo() -> bytes:
    """Nothing but pixels: an ordinary file that takes longer than an ordinary photo."""
    return costly_files.progressive_jpeg(4_000, 4_000, 20)


def test_an_ordinary_photo_is_left_to_its_batch(replica: Replica) -> None:
    photo = image_files.jpeg()
    examined = replica.run(lambda decoding: decoding.prepare(photo, SIZE))
    assert isinstance(examined, Examined)
    before = replica.num_decoded
    (pixels,) = replica.decoding.decode_batch([(examined, SIZE)])
    assert np.array_equal(pixels, decode_resized(photo, SIZE))
    assert replica.num_decoded == before + 1
    assert not replica.decoding.is_broken


def test_what_takes_long_is_decoded_before_its_batch(replica: Replica) -> None:
    photo = slow_photo()
    pixels = replica.run(lambda decoding: decoding.prepare(photo, SIZE))
    replica.run(
        lambda decoding: decoding.prepare(costly_files.progressive_jpeg(3_000, 4_000, 20), SIZE)
    )
    # Those of the next one have another place.
    assert isinstance(pixels, np.ndarray)
    assert (pixels == decode_resized(photo, SIZE)).all()
    assert replica.memory.held_bytes == 0


@pytest.mark.parametrize("padding", [0, 300_000])
def test_what_costs_too_much_is_refused_before_it_is_decoded(
    replica: Replica, padding: int
) -> None:
    hostile = costly_files.progressive_jpeg(7_000, 7_000, 99, is_arithmetic=True) + bytes(padding)
    with pytest.raises(ImageTooCostlyError):
        replica.run(lambda decoding: decoding.prepare(hostile, SIZE))


def test_what_waits_to_be_decoded_is_bounded(replica: Replica) -> None:
    photo = slow_photo()

    async def ask_for_many(decoding: ImageDecoding) -> list[Any]:
        coming = (decoding.prepare(photo, SIZE) for _ in range(32))
        return await asyncio.gather(*coming, return_exceptions=True)

    outcomes = replica.run(ask_for_many)
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverBudgetError)]
    decoded = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    assert refused and decoded
    assert len(refused) + len(decoded) == 32
    # What waited has left the queue.
    assert isinstance(replica.run(lambda decoding: decoding.prepare(photo, SIZE)), np.ndarray)


def test_what_nobody_waits_for_any_more_leaves_the_queue(replica: Replica) -> None:
    photo = slow_photo()

    async def leave(decoding: ImageDecoding) -> Any:
        for _ in range(3):
            waiting = [asyncio.create_task(decoding.prepare(photo, SIZE)) for _ in range(5)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        while decoding._num_slow:
            await asyncio.sleep(0.01)
        return await decoding.prepare(photo, SIZE)

    assert isinstance(replica.run(leave), np.ndarray)


def test_decoding_takes_its_memory_from_the_budget(replica: Replica) -> None:
    photo = slow_photo()
    full = Replica(memory_bytes=2**20)
    try:
        with pytest.raises(NeverFitsError):
            full.run(lambda decoding: decoding.prepare(photo, SIZE))
    finally:
        full.decoding.close()
    with replica.memory.holding(760 * 2**20), pytest.raises(OverBudgetError):
        replica.run(lambda decoding: decoding.prepare(photo, SIZE))


def test_an_image_that_never_fits_beside_its_body_is_told_so(replica: Replica) -> None:
    async def ask(decoding: ImageDecoding) -> Any:
        lease = replica.memory.lease()
        lease.grow(760 * 2**20)
        REQUEST_LEASE.set(lease)
        try:
            return await decoding.prepare(slow_photo(), SIZE)
        finally:
            lease.release()

    with pytest.raises(NeverFitsError):
        replica.run(ask)
    assert replica.memory.held_bytes == 0


def test_a_body_counts_until_the_thread_that_has_it_drops_it(replica: Replica) -> None:
    photo = slow_photo()

    async def leave(decoding: ImageDecoding) -> None:
        lease = replica.memory.lease()
        lease.grow(1_000)
        REQUEST_LEASE.set(lease)
        tasks = [asyncio.create_task(decoding.prepare(photo, SIZE)) for _ in range(3)]
        while lease._num_bytes == 1_000:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lease.release()
        # One is being decoded. Those that waited are gone, and so are their holders.
        assert lease._num_holders == 1 and replica.memory.held_bytes > 1_000
        while replica.memory.held_bytes:
            await asyncio.sleep(0.001)

    replica.run(leave)


def test_what_waits_for_a_thread_is_dropped_with_its_request() -> None:
    class Body:
        pass

    may_end = threading.Event()
    lease = MemoryBudget(6_400).lease()

    async def ask(body: Body) -> Any:
        return await _result(_submit(thread, lambda item: item, body, lease))

    async def leave() -> None:
        body = Body()
        left = weakref.ref(body)
        lease.keep()
        task = asyncio.create_task(ask(body))
        await asyncio.sleep(0)
        del body
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        assert left() is None
        assert lease._num_holders == 1

    with ThreadPoolExecutor(1) as thread:
        thread.submit(may_end.wait)
        try:
            asyncio.run(leave())
        finally:
            may_end.set()


def test_a_replica_recovers_once_processes_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise DecodersError("no process for decoding starts")

    replica = Replica()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(replica.decoding._decoders, "fork", fail)
            with pytest.raises(DecodersError):
                replica.run(lambda decoding: decoding.prepare(slow_photo(), SIZE))
            assert replica.decoding.is_broken
            with pytest.raises(DecodersError):
                replica.decoding.recover()
            assert replica.decoding.is_broken
        replica.decoding.recover()
        assert not replica.decoding.is_broken
    finally:
        replica.decoding.close()


def test_a_file_predicted_wrong_is_given_up_and_the_rest_of_the_batch_is_decoded() -> None:
    settings = {"decode_timeout_s": 10_000, "max_decode_s": 10_000, "request_timeout_s": 20_000}
    replica = Replica(**settings)
    try:
        replica.decoding.start()
        hurry(replica.decoding._slow, 0.2)
        photo = replica.run(lambda decoding: decoding.prepare(image_files.jpeg(), SIZE))
        hostile = costly_files.progressive_jpeg(7_000, 7_000, 99, num_components=3)
        with pytest.raises(DecodingStoppedError):
            replica.run(lambda decoding: decoding.prepare(hostile, SIZE))
        wrong = photo._replace(contents=hostile, num_bytes=2**30)
        (quick,) = replica.decoding._quick
        # The photo before it takes milliseconds. The photo after it has another process.
        hurry(quick, 3)
        first, stopped, last = replica.decoding.decode_batch(
            [(image, SIZE) for image in (photo, wrong, photo)]
        )
        assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
        assert isinstance(stopped, DecodingStoppedError)
    finally:
        replica.decoding.close()


def test_an_image_for_a_comparison_goes_the_same_way(replica: Replica) -> None:
    photo = image_files.jpeg()
    assert (replica.decoding.decode_aside(photo, SIZE) == decode_resized(photo, SIZE)).all()
    with pytest.raises(ImageError):
        replica.decoding.decode_aside(b"nothing", SIZE)
