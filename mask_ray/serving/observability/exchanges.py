"""Requests and their answers as they pass: what is counted and logged, but for what is in them.

Images, tokens and query strings are never kept. Who looks at an `Exchange` is not known here.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.serving.observability.request_ids import request_id

_NOTES = "mask_ray.notes"

# What nginx logs for a client that left before it was answered; never sent.
_CLIENT_LEFT = 499


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Args:
        started_at: Unix time in seconds.
        endpoint: The route that matched, such as `/v2/models/{name}/infer`, or `other`. There are
            only so many of them, whatever paths are asked for.
        client: Address of the peer, which is HAProxy behind it.
        forwarded_for: What `X-Forwarded-For` claims, or an empty string.
        notes: What the application told by `note`.
    """

    started_at: float
    request_id: str
    method: str
    path: str
    client: str
    forwarded_for: str
    endpoint: str = "other"
    status: int = 500
    duration_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


class Exchanges:
    """ASGI middleware, beneath `RequestIds`: shows each exchange that is over to observers.

    Args:
        observers: Called one after the other on the event loop; they must be quick and raise
            nothing.
    """

    def __init__(self, app: ASGIApp, *observers: Callable[[Exchange], None]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _begun(scope)
        started_s = time.perf_counter()
        try:
            await self._app(scope, _counting(receive, exchange), _watched(send, exchange))
        except asyncio.CancelledError:
            exchange.status = _CLIENT_LEFT
            raise
        finally:
            exchange.duration_s = time.perf_counter() - started_s
            exchange.endpoint = getattr(scope.get("route"), "path", "other")
            for observe in self._observers:
                observe(exchange)


def note(scope: Scope, **notes: Any) -> None:
    """Add to the exchange what only the application knows, such as `model_version`.

    Does nothing where no `Exchanges` watches.
    """
    if _NOTES in scope:
        scope[_NOTES].update(notes)


def _begun(scope: Scope) -> Exchange:
    client = scope.get("client")
    exchange = Exchange(
        started_at=time.time(),
        request_id=request_id(scope),
        method=scope["method"],
        path=scope["path"],
        client=client[0] if client else "",
        forwarded_for=_header(scope, b"x-forwarded-for"),
    )
    scope[_NOTES] = exchange.notes
    return exchange


def _header(scope: Scope, wanted: bytes) -> str:
    """The last of that name: those before it may be the client's own."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return values[-1] if values else ""


def _counting(receive: Receive, exchange: Exchange) -> Receive:
    async def receive_and_count() -> Message:
        message = await receive()
        exchange.bytes_in += len(message.get("body", b""))
        return message

    return receive_and_count


def _watched(send: Send, exchange: Exchange) -> Send:
    async def send_and_watch(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        else:
            exchange.bytes_out += len(message.get("body", b""))
        await send(message)

    return send_and_watch
