"""Requests per second of each name that tokens have, counted in each replica."""

import time
from collections.abc import Callable, Mapping


class RateLimits:
    """Admits requests at a name's rate, and up to a second's worth of them at once.

    Called on the event loop alone. A virtual clock for each name, the generic cell rate algorithm:
    ITU-T I.371, section 6.2.3.1.2.

    Args:
        per_second: Rate by name; other names have no limit.
        clock: Seconds that never go back.
    """

    def __init__(
        self, per_second: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = dict(per_second)
        self._clock = clock
        self._due_s: dict[str, float] = {}

    def wait_s(self, name: str) -> float:
        """Count a request. Returns 0, or seconds until one is admitted if this one is not."""
        rate = self._per_second.get(name)
        if rate is None:
            return 0.0
        now_s = self._clock()
        due_s = max(self._due_s.get(name, now_s), now_s)
        # How far ahead of its rate a name may be: a burst of one second, or of one request.
        early_s = due_s - now_s - max(0.0, 1 - 1 / rate)
        if early_s > 1e-9:
            return early_s
        self._due_s[name] = due_s + 1 / rate
        return 0.0
