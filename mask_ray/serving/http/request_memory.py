"""Holds the memory of a request's body in the budget of the replica, until the answer is sent."""

from starlette.types import ASGIApp, Receive, Scope, Send

from mask_ray.serving.memory import REQUEST_LEASE, MemoryBudget

_LEASE = "mask_ray.memory"


class RequestMemory:
    """ASGI middleware: gives each request a lease, and takes it back with the end of the answer."""

    def __init__(self, app: ASGIApp, budget: MemoryBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lease = scope[_LEASE] = self._budget.lease()
        token = REQUEST_LEASE.set(lease)
        try:
            await self._app(scope, receive, send)
        finally:
            REQUEST_LEASE.reset(token)
            lease.release()


def hold(scope: Scope, num_bytes: int) -> None:
    """Hold bytes until the request ends. Does nothing outside `RequestMemory`.

    Raises:
        OverBudgetError: there is no room now; answered with 429.
        NeverFitsError: there will never be; answered with 413.
    """
    if _LEASE in scope:
        scope[_LEASE].grow(num_bytes)
