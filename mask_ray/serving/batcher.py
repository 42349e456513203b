"""Gathers items into batches while the threads that process them are busy.

A free thread takes the items that wait, up to the size of a batch, and never waits for more. So an
idle service processes a single item at once, and a busy one in batches. Items can be anything.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Batcher(Generic[Item, Outcome]):
    """Threads that process items of coroutines in batches. They end with the process.

    Args:
        work: Called in a thread with a batch, and with True if it is one item and nothing else
            waits or is processed. Returns one outcome for each item, in the same order. What it
            raises is raised in every `ask` of the batch.
        num_threads: Most batches at a time.
        max_batch_size: Most items in a batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item], bool], list[Outcome]],
        *,
        num_threads: int,
        max_batch_size: int,
    ) -> None:
        self._work = work
        self._max_batch_size = max_batch_size
        self._waiting: queue.SimpleQueue[tuple[Item, asyncio.Future[Outcome]]] = queue.SimpleQueue()
        self._num_busy = 0
        self._lock = threading.Lock()
        for number in range(num_threads):
            threading.Thread(target=self._run, name=f"batches_{number}", daemon=True).start()

    async def ask(self, items: Sequence[Item]) -> list[Outcome]:
        """Await the outcomes of items, in the same order. Each item joins a batch on its own."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        for pair in zip(items, futures, strict=True):
            self._waiting.put(pair)
        if len(futures) == 1:
            return [await futures[0]]
        return await asyncio.gather(*futures)

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                continue
            with self._lock:
                self._num_busy += 1
                is_alone = self._num_busy == len(batch) == 1 and self._waiting.empty()
            items = [item for item, _ in batch]
            try:
                outcomes: list[Outcome] | Exception = self._work(items, is_alone)
            except Exception as error:
                outcomes = error
            with self._lock:
                self._num_busy -= 1
            futures = [future for _, future in batch]
            try:
                # One call for the whole batch: waking the loop costs more than resolving a future.
                futures[0].get_loop().call_soon_threadsafe(_resolve, futures, outcomes)
            except RuntimeError:
                return  # The loop is closed: nothing waits for outcomes.

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Outcome]"]]:
        """Take the items that wait, without those that were cancelled."""
        batch = [self._waiting.get()]
        while len(batch) < self._max_batch_size:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return [pair for pair in batch if not pair[1].cancelled()]


def _resolve(
    futures: "Sequence[asyncio.Future[Outcome]]", outcomes: Sequence[Outcome] | Exception
) -> None:
    for index, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(outcomes, Exception):
            future.set_exception(outcomes)
        else:
            future.set_result(outcomes[index])
