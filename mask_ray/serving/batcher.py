"""Work gathered into batches while the threads that do it are busy.

A thread that is free takes what waits, up to the size of a batch, and never waits for more: an idle
service answers a single item at once, a busy one in batches. Nothing here knows what an item is.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Batcher(Generic[Item, Outcome]):
    """Threads that work on batches of what coroutines ask for.

    They end with the process.

    Args:
        work: Called in a thread with a batch, and whether that is a single item while nothing
            else waits or is worked on; gives an outcome for each item, in its order. What it
            raises is raised to all who asked.
        num_threads: Batches at a time.
        max_batch_size: Items in a batch.
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
        """The outcomes of some items, in their order; each joins a batch by itself."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        for asked in zip(items, futures, strict=True):
            self._waiting.put(asked)
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
                # Once for all of them: to wake the loop costs more than to resolve a future.
                futures[0].get_loop().call_soon_threadsafe(_resolve, futures, outcomes)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Outcome]"]]:
        """What waits, without that whose askers have left."""
        batch = [self._waiting.get()]
        while len(batch) < self._max_batch_size:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return [asked for asked in batch if not asked[1].cancelled()]


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
