"""ASGI middleware: headers of every answer, and Serve's own errors in the project's form."""

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.serving.http.errors import NO_SNIFFING, RETRY_AFTER_S, error_response
from mask_ray.serving.observability.request_ids import RequestIds


class NoSniffing:
    """ASGI middleware: every answer says that its type is what it says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to answers that lack it."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in NO_SNIFFING.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_header)


# By Serve's status. Its 408 says that it waited too long for a replica, not for the client.
_SERVE_STATUSES = {408: 504}
_SERVE_DETAILS = {
    404: "There is nothing at this path.",
    429: "All replicas are busy.",
    502: "The replica that was asked has gone.",
    503: "No replica is ready.",
    504: "There was no answer in time.",
}
_ASK_AGAIN = {"retry-after": str(RETRY_AFTER_S)}


class ProblemsForServeErrors:
    """ASGI middleware: what Serve itself answers in plain text becomes an error of our own form.

    Serve refuses an overload, for one, before the app is called. Where a replica dies with a
    request inside it, its Python proxy has no answer at all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on all that is not an error of Serve's own."""
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
            gone = error_response(scope["path"], 502, _SERVE_DETAILS[502], _ASK_AGAIN)
            await gone(scope, receive, send)


def _is_plain_error(start: Message) -> bool:
    content_type = Headers(raw=start["headers"]).get("content-type", "")
    # Serve's 499, of a client that left, is no status of HTTP, and nobody reads it.
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
        kept = _ASK_AGAIN | kept
    detail = _SERVE_DETAILS.get(status, "The server failed on this request.")
    return error_response(path, status, detail, kept)


def problem_middleware() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, which Serve reads when it starts."""
    return [Middleware(ProblemsForServeErrors), Middleware(RequestIds)]
