"""Gathers items into batches while the threads that process them are busy.

A free thread takes the items that wait, up to the size of a batch, and never waits for more. So an
idle service processes a single item at once, and a busy one in batches. Items can be anything.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Waiting(Generic[Item, Outcome]):
    """An item and the future of its outcome. Only one of thread and asker gets them.

    Once the asker has taken both, what waits holds no reference to the item, which may be large. A
    cancelled future would: the traceback of its error holds the variables of its frames.
    """

    def __init__(
        self, item: Item, future: "asyncio.Future[Outcome]", on_dropped: Callable[[], None]
    ) -> None:
        self._held = [(item, future)]
        self.on_dropped = on_dropped

    def take(self) -> "list[tuple[Item, asyncio.Future[Outcome]]]":
        """Return both in a list, which is empty if they were taken before."""
        try:
            return [self._held.pop()]
        except IndexError:
            return []


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
        self._waiting: queue.SimpleQueue[_Waiting[Item, Outcome]] = queue.SimpleQueue()
        self._num_busy = 0
        self._lock = threading.Lock()
        for number in range(num_threads):
            threading.Thread(target=self._run, name=f"batches_{number}", daemon=True).start()

    async def ask(
        self, items: Sequence[Item], on_dropped: Callable[[], None] = lambda: None
    ) -> list[Outcome]:
        """Await the outcomes of items, in the same order. Each item joins a batch on its own.

        Args:
            items: Those that still wait when nobody awaits them any more are dropped at once.
            on_dropped: Called in any thread for each item once the batcher has dropped it.
        """
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        asked = [_Waiting(*pair, on_dropped) for pair in zip(items, futures, strict=True)]
        for waiting in asked:
            self._waiting.put(waiting)
        try:
            if len(futures) == 1:
                return [await futures[0]]
            return await asyncio.gather(*futures)
        finally:
            for waiting in asked:
                if waiting.take():
                    on_dropped()

    def _run(self) -> None:
        with suppress(RuntimeError):  # The loop is closed: nothing waits for outcomes.
            while True:
                # Nothing here refers to a batch while the next one is awaited.
                self._process(*self._next_batch())

    def _process(
        self,
        items: list[Item],
        futures: "list[asyncio.Future[Outcome]]",
        on_dropped: list[Callable[[], None]],
    ) -> None:
        if not items:
            return
        with self._lock:
            self._num_busy += 1
            is_alone = self._num_busy == len(items) == 1 and self._waiting.empty()
        try:
            outcomes: list[Outcome] | Exception = self._work(items, is_alone)
        except Exception as error:
            outcomes = error
        with self._lock:
            self._num_busy -= 1
        del items
        for dropped in on_dropped:
            dropped()
        # One call for the whole batch: waking the loop costs more than resolving a future.
        futures[0].get_loop().call_soon_threadsafe(_resolve, futures, outcomes)

    def _next_batch(
        self,
    ) -> "tuple[list[Item], list[asyncio.Future[Outcome]], list[Callable[[], None]]]":
        """Take the items that wait, without those that were dropped."""
        batch = [self._waiting.get()]
        while len(batch) < self._max_batch_size:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        taken = [(*pair, waiting.on_dropped) for waiting in batch for pair in waiting.take()]
        items, futures, on_dropped = zip(*taken, strict=True) if taken else ((), (), ())
        return [*items], [*futures], [*on_dropped]


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
