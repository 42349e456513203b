"""A name for each request, the same in its answer, in the access log and in Serve's own log.

Serve makes ids too, but passes on whatever a client sends and adds a header of its own; this
middleware, around Serve's, lets only harmless ids in and leaves one header in the answer.
"""

import random
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]

HEADER = b"x-request-id"

# Letters, digits and what UUIDs, base64 and trace ids are written with: nothing that could break a
# log line, a file name or a query of logs.
_SANE = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")


class RequestIds:
    """ASGI middleware: a sane `X-Request-ID` is kept, another is replaced, a missing one made."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything beneath finds the id in the request's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _sane_id(scope) or _new_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_id(message.get("headers", ()), request_id)}
            await send(message)

        named = {**scope, "headers": _with_id(scope["headers"], request_id)}
        await self._app(named, receive, send_with_id)


def request_id(scope: Scope) -> str:
    """The id of a request beneath `RequestIds`."""
    return next(value for name, value in scope["headers"] if name == HEADER).decode()


def _new_id() -> bytes:
    # Nobody has to be unable to guess it, and uuid4 asks the kernel.
    return b"%032x" % random.getrandbits(128)


def _sane_id(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == HEADER]
    return given[0] if len(given) == 1 and _SANE.fullmatch(given[0]) else None


def _with_id(headers: Iterable[Header], request_id: bytes) -> list[Header]:
    others = [header for header in headers if header[0].lower() != HEADER]
    return [*others, (HEADER, request_id)]
