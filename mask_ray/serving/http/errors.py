"""Errors over HTTP: problem+json everywhere, but in the protocol's own form under `/v2`.

A client is told what it did wrong, and nothing of the server: no trace, path or version.
"""

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.images.decode import ImageError, ImageFormatError, ImageTooLargeError
from mask_ray.serving.http.open_inference.requests import InferError
from mask_ray.serving.http.payloads import PayloadError, quoted

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

# A browser must not take an answer for anything else than its Content-Type says.
_NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def error_response(
    path: str, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the form of the path that was asked for."""
    headers = {**(headers or {}), **_NO_SNIFFING}
    # Whatever prefix the application is served under.
    if "v2" in path.split("/"):
        return JSONResponse(InferError(error=detail).model_dump(), status, headers)
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for its description in OpenAPI."""
    content = {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def not_ready() -> HTTPException:
    """No model can answer now."""
    return HTTPException(503, "The model is not ready.", {"Retry-After": str(RETRY_AFTER_S)})


async def _on_http_exception(request: Request, error: Any) -> JSONResponse:
    return _response(request, error.status_code, error.detail, error.headers)


async def _on_payload_error(request: Request, error: Any) -> JSONResponse:
    return _response(request, error.status, str(error))


async def _on_image_error(request: Request, error: Any) -> JSONResponse:
    status = 400
    if isinstance(error, ImageTooLargeError):
        status = 413
    elif isinstance(error, ImageFormatError):
        status = 415
    return _response(request, status, str(error))


async def _on_validation_error(request: Request, error: Any) -> JSONResponse:
    mistakes = (
        f"{mistake['loc'][-1]} {mistake['msg'].replace('Input should', 'must', 1)}; "
        f"got {quoted(str(mistake['input']))}"
        for mistake in error.errors()
    )
    return _response(request, 422, ". ".join(mistakes))


async def _on_disconnect(request: Request, _: Any) -> JSONResponse:
    return _response(request, 400, "The connection closed before the request had arrived.")


async def _on_unexpected(request: Request, _: Any) -> JSONResponse:
    # Starlette raises the error again once this is sent, and Serve logs it.
    return _response(request, 500, "The server failed on this request.")


def _response(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return error_response(request.scope["path"], status, detail, headers)


EXCEPTION_HANDLERS: dict[
    int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]
] = {
    HTTPException: _on_http_exception,
    PayloadError: _on_payload_error,
    ImageError: _on_image_error,
    RequestValidationError: _on_validation_error,
    ClientDisconnect: _on_disconnect,
    Exception: _on_unexpected,
}


class NoSniffing:
    """ASGI middleware: every answer says that its type is what it says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to answers that lack it."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _NO_SNIFFING.items():
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
