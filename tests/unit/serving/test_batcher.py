"""Items that wait become batches, each asker gets its own outcome, and nobody is forgotten."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mask_ray.serving.batcher import Batcher

DEADLINE_S = 100


class Work:
    """Doubles numbers, once it is let; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], bool]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()

    def __call__(self, items: list[int], is_alone: bool) -> list[int]:
        self.batches.append((items, is_alone))
        self.begun.release()
        assert self.may_end.wait(DEADLINE_S)
        return [2 * item for item in items]


def run(use: Callable[[], Awaitable[Any]]) -> Any:
    async def within_deadline() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await use()

    return asyncio.run(within_deadline())


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.acquire, timeout=DEADLINE_S)


def test_each_asker_gets_the_outcomes_of_its_own_items() -> None:
    work = Work()
    work.may_end.set()

    async def ask() -> list[list[int]]:
        batcher = Batcher(work, num_threads=2, max_batch_size=3)
        return await asyncio.gather(*(batcher.ask([n, n + 100]) for n in range(20)))

    assert run(ask) == [[2 * n, 2 * n + 200] for n in range(20)]


def test_what_waits_for_a_busy_thread_becomes_one_batch_up_to_its_size() -> None:
    work = Work()

    async def ask() -> None:
        batcher = Batcher(work, num_threads=1, max_batch_size=3)
        first = asyncio.ensure_future(batcher.ask([0]))
        await begun(work)
        others = [asyncio.ensure_future(batcher.ask([n])) for n in range(1, 6)]
        await asyncio.sleep(0)
        work.may_end.set()
        await asyncio.gather(first, *others)

    run(ask)
    assert work.batches == [([0], True), ([1, 2, 3], False), ([4, 5], False)]


def test_an_item_is_alone_only_while_no_other_thread_works() -> None:
    work = Work()

    async def ask() -> None:
        batcher = Batcher(work, num_threads=2, max_batch_size=3)
        first = asyncio.ensure_future(batcher.ask([1]))
        await begun(work)
        second = asyncio.ensure_future(batcher.ask([2]))
        await begun(work)
        work.may_end.set()
        await asyncio.gather(first, second)

    run(ask)
    assert work.batches == [([1], True), ([2], False)]


def test_what_nobody_waits_for_any_more_is_left_out() -> None:
    work = Work()

    async def ask() -> list[int]:
        batcher = Batcher(work, num_threads=1, max_batch_size=3)
        first = asyncio.ensure_future(batcher.ask([0]))
        await begun(work)
        gone = asyncio.ensure_future(batcher.ask([1]))
        await asyncio.sleep(0)
        gone.cancel()
        last = asyncio.ensure_future(batcher.ask([2]))
        await asyncio.sleep(0)
        work.may_end.set()
        await first
        return await last

    assert run(ask) == [4]
    assert [items for items, _ in work.batches] == [[0], [2]]


def test_what_nobody_waits_for_any_more_is_dropped_at_once() -> None:
    may_end, begun_work = threading.Event(), threading.Semaphore(0)
    dropped: list[str] = []

    def work(items: list[Any], is_alone: bool) -> list[int]:
        begun_work.release()
        assert may_end.wait(DEADLINE_S)
        return [0 for _ in items]

    class Body:
        pass

    async def ask() -> None:
        batcher: Batcher[Any, int] = Batcher(work, num_threads=1, max_batch_size=3)
        taken, waiting = Body(), Body()
        bodies = [weakref.ref(taken), weakref.ref(waiting)]
        first = asyncio.ensure_future(batcher.ask([taken], lambda: dropped.append("first")))
        assert await asyncio.to_thread(begun_work.acquire, timeout=DEADLINE_S)
        second = asyncio.ensure_future(batcher.ask([waiting], lambda: dropped.append("second")))
        await asyncio.sleep(0)
        del taken, waiting
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])
        del first, second, task
        gc.collect()
        # One is in work; the thread has not come to the other.
        assert dropped == ["second"]
        assert bodies[0]() is not None and bodies[1]() is None
        may_end.set()
        while bodies[0]() is not None or dropped != ["second", "first"]:
            await asyncio.sleep(0.01)

    run(ask)


def test_an_error_reaches_all_who_asked_and_ends_no_thread() -> None:
    def fail_once(items: list[int], is_alone: bool) -> list[int]:
        if 0 in items:
            raise ZeroDivisionError
        return items

    async def ask() -> list[int]:
        batcher = Batcher(fail_once, num_threads=1, max_batch_size=3)
        with pytest.raises(ZeroDivisionError):
            await batcher.ask([0])
        return await batcher.ask([1])

    assert run(ask) == [1]
