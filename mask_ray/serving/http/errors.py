"""Errors over HTTP: problem+json, and under `/v2` the form of the Open Inference Protocol.

An error says what the client did wrong, and nothing about the server: no trace, path or version.
"""

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from mask_ray.images.decoders import DecodersError
from mask_ray.images.errors import (
    DecodingStoppedError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
)
from mask_ray.serving.http.limits import PayloadError, quoted
from mask_ray.serving.http.open_inference.responses import InferError
from mask_ray.serving.memory import NeverFitsError, OverBudgetError

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class Problem(BaseModel):
    """An error in the form of RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def error_response(
    path: str, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Build an error in the form of its path: `InferError` under `/v2`, `Problem` elsewhere."""
    # The application may be served under a prefix.
    if "v2" in path.split("/"):
        return JSONResponse(InferError(error=detail).model_dump(), status, headers)
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Build the `responses` argument of a route, for its description in OpenAPI."""
    content = {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def not_ready() -> HTTPException:
    """Build the 503 of a replica whose model is not ready."""
    return HTTPException(503, "The model is not ready.", {"Retry-After": str(RETRY_AFTER_S)})


async def _on_http_exception(request: Request, error: Any) -> JSONResponse:
    headers = dict(error.headers or {})
    allowed = headers.get("Allow", "").split(", ")
    if error.status_code == 405 and "GET" in allowed:
        # See `middleware.HeadRequests`.
        headers["Allow"] = ", ".join(sorted({*allowed, "HEAD"}))
    return _response(request, error.status_code, error.detail, headers)


async def _on_payload_error(request: Request, error: Any) -> JSONResponse:
    return _response(request, error.status, str(error))


async def _on_image_error(request: Request, error: Any) -> JSONResponse:
    status = 400
    if isinstance(error, ImageTooLargeError):
        status = 413
    elif isinstance(error, ImageFormatError):
        status = 415
    elif isinstance(error, DecodingStoppedError):
        # Not 504: another attempt would end the same way.
        status = 422
    return _response(request, status, str(error))


async def _on_over_budget(request: Request, error: Any) -> JSONResponse:
    detail = f"The replica is busy: {error}."
    return _response(request, 429, detail, {"Retry-After": str(RETRY_AFTER_S)})


async def _on_no_decoder(request: Request, error: Any) -> JSONResponse:
    detail = "The replica cannot decode images now."
    return _response(request, 503, detail, {"Retry-After": str(RETRY_AFTER_S)})


async def _on_never_fits(request: Request, error: Any) -> JSONResponse:
    return _response(request, 413, str(error))


async def _on_validation_error(request: Request, error: Any) -> JSONResponse:
    mistakes = (
        f"{mistake['loc'][-1]} {mistake['msg'].replace('Input should', 'must', 1)}; "
        f"got {quoted(str(mistake['input']))}"
        for mistake in error.errors()
    )
    return _response(request, 422, ". ".join(mistakes))


async def _on_disconnect(request: Request, _: Any) -> JSONResponse:
    return _response(request, 400, "The connection closed before the request had arrived.")


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
    OverBudgetError: _on_over_budget,
    NeverFitsError: _on_never_fits,
    DecodersError: _on_no_decoder,
    RequestValidationError: _on_validation_error,
    ClientDisconnect: _on_disconnect,
}
