"""Waiting for something to happen elsewhere: by looking again and again, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    look: Callable[[], T],
    what: str | Callable[[], str] = "what the test waits for",
    *,
    timeout_s: float = 300,
    every_s: float = 0.05,
) -> T:
    """Look until there is something to see.

    Args:
        look: Returns something true once it has happened.
        what: What is waited for, for the error; a function is called at the deadline.
        timeout_s: When to give up. Long, so that only what never happens fails a test.
        every_s: Pause between two looks, in seconds.

    Returns:
        What `look` returned.

    Raises:
        AssertionError: it did not happen in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            described = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {timeout_s:g} s for {described}")
        time.sleep(every_s)
    return seen
