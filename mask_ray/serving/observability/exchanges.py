"""Records each request and its answer, without their content, for metrics and the access log.

Images, tokens and query strings are never kept.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.serving.observability.request_ids import request_id

_NOTES = "mask_ray.notes"

# As nginx logs a client that left before the answer; never sent.
_CLIENT_LEFT = 499


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Args:
        started_at: Unix time in seconds.
        endpoint: The matched route, such as `/v2/models/{name}/infer`, or `other`, so that their
            number is bounded whatever paths clients request.
        client: Address of the peer; HAProxy's, if the request came through it.
        forwarded_for: Value of `X-Forwarded-For`, or an empty string.
        notes: Values that the app added with `note`.
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
    """ASGI middleware, inside `RequestIds`: passes each finished exchange to observers.

    Args:
        app: The app inside.
        observers: Called one after the other on the event loop. They must be quick and must not
            raise.
    """

    def __init__(self, app: ASGIApp, *observers: Callable[[Exchange], None]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on unchanged, and observe it."""
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
    """Add values to the exchange that only the app knows, such as `model_version`.

    Does nothing outside `Exchanges`.
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
    """Return the last header of a name: earlier ones may come from the client."""
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
