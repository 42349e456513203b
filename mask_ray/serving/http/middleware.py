"""Headers of every answer, answers to HEAD, and Serve's own errors in the project's form.

To add a header to every answer, add it to `ANSWER_HEADERS`. HAProxy answers its own errors, with
headers that `serving.haproxy` writes.
"""

from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.serving.http.errors import RETRY_AFTER_S, error_response
from mask_ray.serving.observability.request_ids import RequestIds

# A browser must not take an answer for another type than its Content-Type.
ANSWER_HEADERS = {"X-Content-Type-Options": "nosniff"}


class AnswerHeaders:
    """ASGI middleware: adds `ANSWER_HEADERS` to answers that lack them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the answer with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ANSWER_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HeadRequests:
    """ASGI middleware: answers HEAD as GET without the body, on every path that has GET.

    RFC 9110, section 9.1, asks for it, and `wget --spider` and many monitors rely on it. FastAPI's
    routes answer 405; `errors` names HEAD where they answer so to another method.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on HEAD as GET, and everything else unchanged."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy: the server must still know that it answers HEAD.
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            scope.update({"route": as_get["route"]} if "route" in as_get else {})


async def on_unexpected_error(request: Request, _: Any) -> JSONResponse:
    """Answer 500 to an error that nothing else handles.

    Starlette sends this answer from outside all middleware, then raises the error again, and Serve
    logs it.
    """
    path, detail = request.scope["path"], "The server failed on this request."
    return error_response(path, 500, detail, ANSWER_HEADERS)


# Serve's 408 means that it waited too long for a replica, not for the client.
_SERVE_STATUSES = {408: 504}
_SERVE_DETAILS = {
    404: "There is nothing at this path.",
    429: "All replicas are busy.",
    502: "The replica ended before it answered.",
    503: "No replica is ready.",
    504: "There was no answer in time.",
}
_TRY_AGAIN = {"retry-after": str(RETRY_AFTER_S)}


class ProblemsForServeErrors:
    """ASGI middleware: replaces Serve's plain-text errors with `error_response`.

    Serve answers some requests before the app is called, such as 429 under overload. When a replica
    dies during a request, Serve's Python proxy would send no answer; this middleware sends 502.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on every answer except Serve's own errors."""
        is_replaced = is_started = False

        async def send_problem_instead(message: Message) -> None:
            nonlocal is_replaced, is_started
            is_started = True
            if message["type"] == "http.response.start" and _is_plain_error(message):
                is_replaced = True
                await _problem_for(scope["path"], message)(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, send_problem_instead)
        if scope["type"] == "http" and not is_started:
            headers = _TRY_AGAIN | ANSWER_HEADERS
            gone = error_response(scope["path"], 502, _SERVE_DETAILS[502], headers)
            await gone(scope, receive, send)


def _is_plain_error(start: Message) -> bool:
    content_type = Headers(raw=start["headers"]).get("content-type", "")
    # Serve's 499 means that the client left: nobody reads the answer.
    return (
        start["status"] >= 400 and start["status"] != 499 and content_type.startswith("text/plain")
    )


def _problem_for(path: str, start: Message) -> JSONResponse:
    answered: int = start["status"]
    status = _SERVE_STATUSES.get(answered, answered)
    kept = {
        name: value
        for name, value in Headers(raw=start["headers"]).items()
        if name not in ("content-type", "content-length")
    }
    if status in (503, 504):
        kept = _TRY_AGAIN | kept
    detail = _SERVE_DETAILS.get(status, "The server failed on this request.")
    return error_response(path, status, detail, kept | ANSWER_HEADERS)


def problem_middleware() -> list[Middleware]:
    """Build the middleware of Serve's proxies, around the app.

    `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, which Serve reads when it starts, names this.
    """
    return [Middleware(ProblemsForServeErrors), Middleware(RequestIds)]
