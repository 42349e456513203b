"""Gives each request an id: the same in its answer, in the access log and in Serve's own log.

Serve creates ids too, but accepts any id that a client sends, and adds its own header. This
middleware, around Serve's, accepts only harmless ids and leaves one header in the answer.
"""

import random
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]

HEADER = b"x-request-id"

# Letters, digits and the signs of UUIDs, base64 and trace ids. None of them can break a log line, a
# file name or a query of logs.
_VALID = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")


class RequestIds:
    """ASGI middleware: keeps a valid `X-Request-ID`, and replaces any other or a missing one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the request and its answer, each with one id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _valid_id(scope) or _new_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_id(message.get("headers", ()), request_id)}
            await send(message)

        scope_with_id = {**scope, "headers": _with_id(scope["headers"], request_id)}
        await self._app(scope_with_id, receive, send_with_id)


def request_id(scope: Scope) -> str:
    """Return the id of a request inside `RequestIds`."""
    return next(value for name, value in scope["headers"] if name == HEADER).decode()


def _new_id() -> bytes:
    # It need not be unguessable, and uuid4 would make a system call.
    return b"%032x" % random.getrandbits(128)


def _valid_id(scope: Scope) -> bytes | None:
    received = [value for name, value in scope["headers"] if name == HEADER]
    return received[0] if len(received) == 1 and _VALID.fullmatch(received[0]) else None


def _with_id(headers: Iterable[Header], request_id: bytes) -> list[Header]:
    others = [header for header in headers if header[0].lower() != HEADER]
    return [*others, (HEADER, request_id)]
