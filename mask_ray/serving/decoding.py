"""Decodes the images of a replica in two lanes, each in processes that can be ended.

What is predicted to be quick is decoded in the batches of the threads that classify, which wait for
nothing else. The rest goes through one process of its own, image by image: it never delays an
ordinary photo, and what waits for it is bounded in seconds. A file that is predicted wrong is ended
after a time limit in either.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from mask_ray.config import QUICK_DECODE_BYTES, ServeSettings
from mask_ray.images.decode import Examined, RGBArray, examine
from mask_ray.images.decoders import Decoder, Decoders, DecodersError
from mask_ray.images.errors import ImageError
from mask_ray.serving.memory import REQUEST_LEASE, Lease, MemoryBudget, OverBudgetError

# An ordinary photo takes milliseconds; one of a phone's 12 megapixels a tenth of a second.
_QUICK_S = 0.25
# Looking through more takes longer than the event loop should be busy.
_EXAMINED_HERE_BYTES = 256 * 1024

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageDecoding:
    """The lanes of one replica.

    Args:
        settings: Limits of an image, and of the time to decode it.
        memory: Budget for slow images that belong to no request. Those of a request use its own
            lease, so a request that never fits gets an error that says so.
        on_decoded: Called in any thread after each image with the seconds that it took.
    """

    def __init__(
        self, settings: ServeSettings, memory: MemoryBudget, on_decoded: Callable[[float], None]
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._on_decoded = on_decoded
        self._decoders = Decoders(settings.decode_timeout_s)
        self._quick = [self._decoders.decoder() for _ in range(settings.num_threads)]
        self._unused = [*self._quick]
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._slow = self._decoders.decoder()
        self._slow_thread = ThreadPoolExecutor(1, "slow_images")
        self._slow_waiting_s, self._num_slow = 0.0, 0
        self._is_broken = False
        self._examining = ThreadPoolExecutor(1, "examine")

    @property
    def is_in_time(self) -> bool:
        """Whether a quick image is being decoded, and not for longer than it may."""
        return any(decoder.is_in_time for decoder in self._quick)

    def start(self) -> None:
        """Start the processes, so that no request waits for them.

        Raises:
            DecodersError: they do not start.
        """
        for decoder in (*self._quick, self._slow):
            decoder.start()

    def close(self) -> None:
        """End the processes."""
        for decoder in (*self._quick, self._slow):
            decoder.close()
        self._decoders.close()

    async def prepare(self, encoded: bytes, image_size: int) -> Examined | RGBArray:
        """Look through an image, and decode it if that is not quick.

        Raises:
            ImageError: it cannot be decoded, or must not.
            OverBudgetError: too much waits already.
            NeverFitsError: the request would take more memory than any may.
            DecodersError: no process can be started.
        """
        examined = await self._examine(encoded, image_size)
        if examined.seconds <= _QUICK_S and examined.num_bytes <= QUICK_DECODE_BYTES:
            return examined
        return await _result(self._submit_slow(examined, image_size))

    async def _examine(self, encoded: bytes, image_size: int) -> Examined:
        if len(encoded) <= _EXAMINED_HERE_BYTES:
            return examine(encoded, self._settings, at_least_px=image_size)
        examining = _submit(
            self._examining,
            lambda body: examine(body, self._settings, at_least_px=image_size),
            encoded,
            self._shared_lease(),
        )
        return await _result(examining)

    def _shared_lease(self) -> Lease:
        """Return the request's lease, with one more holder, or one of its own."""
        lease = REQUEST_LEASE.get()
        if lease is None:
            return self._memory.lease()
        lease.keep()
        return lease

    def decode_aside(self, encoded: bytes, image_size: int) -> RGBArray:
        """Decode an image that no client waits for, in the lane of those that are not quick.

        Raises:
            ImageError: it cannot be decoded.
            OverBudgetError: too much waits already.
        """
        examined = examine(encoded, self._settings, at_least_px=image_size)
        return self._submit_slow(examined, image_size).result()

    @property
    def is_broken(self) -> bool:
        """Whether the last images found no process to decode them."""
        return self._is_broken

    def recover(self) -> None:
        """Try to start a process again.

        Raises:
            DecodersError: none starts.
        """
        decoder = self._decoders.decoder()
        decoder.start()
        decoder.close()
        self._is_broken = False

    def decode_batch(self, requests: Sequence[tuple[Examined, int]]) -> list[RGBArray | ImageError]:
        """Decode quick images, in the process of the calling thread: one of `num_threads`.

        Returns:
            The pixels of each or its error, in order. Pixels are valid until the thread's next
            call.

        Raises:
            DecodersError: no process can be started.
        """
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = self._unused.pop()
        return self._decode(self._of_thread.decoder, requests)

    def _decode(
        self, decoder: Decoder, requests: Sequence[tuple[Examined, int]]
    ) -> list[RGBArray | ImageError]:
        try:
            outcomes = decoder.decode(requests, self._on_decoded)
        except DecodersError:
            self._is_broken = True
            raise
        self._is_broken = False
        return outcomes

    def _submit_slow(self, examined: Examined, image_size: int) -> "Future[RGBArray]":
        lease = self._shared_lease()
        try:
            self._join_slow(examined.seconds)
        except OverBudgetError:
            lease.release()
            raise
        future = _submit(
            self._slow_thread,
            lambda file: self._decode_slow(file, image_size, lease),
            examined,
            lease,
        )
        seconds = examined.seconds
        # Also of one that is cancelled while it waits.
        future.add_done_callback(lambda _: self._leave_slow(seconds))
        return future

    def _join_slow(self, seconds: float) -> None:
        with self._lock:
            # One is always accepted; the limits have bounded it.
            waiting_s = self._slow_waiting_s + seconds
            if self._num_slow and waiting_s > self._settings.decode_timeout_s:
                raise OverBudgetError("images that take long to decode wait already")
            self._slow_waiting_s = waiting_s
            self._num_slow += 1

    def _leave_slow(self, seconds: float) -> None:
        with self._lock:
            self._num_slow -= 1
            self._slow_waiting_s = self._slow_waiting_s - seconds if self._num_slow else 0.0

    def _decode_slow(self, examined: Examined, image_size: int, lease: Lease) -> RGBArray:
        with lease.holding(examined.num_bytes):
            (outcome,) = self._decode(self._slow, [(examined, image_size)])
        if isinstance(outcome, ImageError):
            raise outcome
        # The process decodes the next one into the same memory.
        return outcome.copy()


def _submit(
    thread: ThreadPoolExecutor, work: Callable[[Item], Result], item: Item, lease: Lease
) -> "Future[Result]":
    """Have a thread process an item. One that is cancelled while it waits is dropped at once.

    Args:
        thread: The thread.
        work: Called in it.
        item: What it is called with.
        lease: Released once nothing here refers to the item.
    """
    held = [item]
    future = thread.submit(lambda: work(held.pop()))

    def drop(_: "Future[Result]") -> None:
        held.clear()
        lease.release()

    future.add_done_callback(drop)
    return future


async def _result(future: "Future[Result]") -> Result:
    """Await a future of a thread, which is cancelled if this is.

    The thread's queue keeps a cancelled future until its turn comes. A future of
    `asyncio.wrap_future` would keep the caller's frames alive, and with them the body.
    """
    loop = asyncio.get_running_loop()
    waiting = [loop.create_future()]

    def wake() -> None:
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def call_wake(_: "Future[Result]") -> None:
        with suppress(RuntimeError):  # The loop is closed: nothing waits.
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(call_wake)
    try:
        await waiting[0]
    finally:
        waiting.clear()
        future.cancel()
    return future.result()
