"""One budget in bytes over all requests of a replica.

Every request holds what its body takes as it arrives, and what decoding its images takes while
they are decoded. What does not fit is refused before it is allocated, so that no mix of requests
can take more than the replica has reserved.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Ordinary photos find room whatever else is sent: requests that hold more than the first share of
# the budget leave the second share to smaller ones.
_SMALL_SHARE = 1 / 64
_LEFT_TO_SMALL = 1 / 4


class OverBudgetError(Exception):
    """There is no room now; there may be soon."""


class NeverFitsError(Exception):
    """The request alone takes more than the budget allows."""


class MemoryBudget:
    """Counts the bytes that requests hold. Safe to call from several threads.

    Args:
        num_bytes: The budget.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._small_bytes = int(num_bytes * _SMALL_SHARE)
        self._for_large_bytes = self._num_bytes - int(num_bytes * _LEFT_TO_SMALL)
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._held_bytes

    def lease(self) -> "Lease":
        """Return an empty lease."""
        return Lease(self)

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Hold bytes for a while.

        Raises:
            OverBudgetError: there is no room.
            NeverFitsError: there will never be.
        """
        lease = self.lease()
        lease.grow(num_bytes)
        try:
            yield
        finally:
            lease.release()

    def take(self, num_bytes: int, total_bytes: int) -> None:
        """Add bytes to a lease that then holds `total_bytes`; see `Lease.grow`."""
        limit = self._num_bytes if total_bytes <= self._small_bytes else self._for_large_bytes
        if total_bytes > limit:
            raise NeverFitsError(
                f"request would take {total_bytes} bytes of memory; at most {limit} are allowed"
            )
        with self._lock:
            if self._held_bytes + num_bytes > limit:
                raise OverBudgetError("memory for requests is full")
            self._held_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Return bytes of a lease."""
        with self._lock:
            self._held_bytes -= num_bytes


class Lease:
    """What one request holds of a budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._num_bytes = 0
        self._num_holders = 1
        self._lock = threading.Lock()

    def grow(self, num_bytes: int) -> None:
        """Hold more.

        Raises:
            OverBudgetError: there is no room now, or the request has ended.
            NeverFitsError: the lease would hold more than the whole budget allows.
        """
        with self._lock:
            self._check_held()
            self._budget.take(num_bytes, self._num_bytes + num_bytes)
            self._num_bytes += num_bytes

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Hold more for a while.

        Raises:
            OverBudgetError, NeverFitsError: as `grow`.
        """
        self.grow(num_bytes)
        try:
            yield
        finally:
            with self._lock:
                # All was given back if nobody holds the lease any more.
                if self._num_holders:
                    self._budget.give_back(num_bytes)
                    self._num_bytes -= num_bytes

    def keep(self) -> None:
        """Add a holder: a queue or a thread may have a body longer than its request lasts.

        Raises:
            OverBudgetError: the request has ended.
        """
        with self._lock:
            self._check_held()
            self._num_holders += 1

    def release(self) -> None:
        """Remove a holder. The last one gives everything back, for good."""
        with self._lock:
            self._num_holders = max(0, self._num_holders - 1)
            if not self._num_holders:
                self._budget.give_back(self._num_bytes)
                self._num_bytes = 0

    def _check_held(self) -> None:
        if not self._num_holders:
            raise OverBudgetError("the request has ended")


# The lease of the request that a coroutine works for; None outside requests.
REQUEST_LEASE: ContextVar[Lease | None] = ContextVar("request_lease", default=None)
