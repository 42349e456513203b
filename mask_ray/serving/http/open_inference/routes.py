"""Routes of `/v2`, the Open Inference Protocol."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from mask_ray.serving.http.auth import require_token
from mask_ray.serving.http.backend import (
    AnyBackend,
    Backend,
    ReadyBackend,
    in_time_or_408,
    in_time_or_504,
)
from mask_ray.serving.http.open_inference.requests import (
    HEADER_LENGTH,
    check_model,
    parse_infer_request,
)
from mask_ray.serving.http.open_inference.responses import (
    InferError,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    infer_response,
    model_metadata,
)
from mask_ray.serving.http.payloads import read_body
from mask_ray.serving.http.query import reject_unknown_parameters
from mask_ray.serving.http.request_memory import hold
from mask_ray.serving.observability.exchanges import note

API_VERSION = "1"

_MODEL = "/models/{name}"
_VERSION = "/models/{name}/versions/{version}"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": InferError} for status in statuses}


# Probes need no token; all other routes do.
open_router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    dependencies=[Depends(require_token), Depends(reject_unknown_parameters)],
    responses=_errors(401, 422, 429, 500),
)


@open_router.get("/health/live")
async def server_live() -> ServerLive:
    """Answer while the process runs."""
    return ServerLive()


@open_router.get("/health/ready", responses={503: {"model": ServerReady}})
async def server_ready(backend: AnyBackend) -> Response:
    """Say whether the model can classify."""
    return _ready(ServerReady(ready=backend.is_ready))


@router.get("")
async def server_metadata() -> ServerMetadata:
    """Name the server and its extensions of the protocol."""
    return ServerMetadata(version=API_VERSION)


# A route for each path: as an optional parameter, the version would also be one of the query.
@router.get(_MODEL, responses=_errors(404))
async def metadata(backend: AnyBackend, name: str) -> ModelMetadata:
    """Describe the model's inputs and outputs."""
    return _metadata(backend, name)


@router.get(_VERSION, responses=_errors(404))
async def version_metadata(backend: AnyBackend, name: str, version: str) -> ModelMetadata:
    """Describe the inputs and outputs of a version."""
    return _metadata(backend, name, version)


@router.get(f"{_MODEL}/ready", responses={404: {"model": InferError}, 503: {"model": ModelReady}})
async def model_ready(backend: AnyBackend, name: str) -> Response:
    """Say whether the model can classify."""
    return _model_ready(backend, name)


@router.get(f"{_VERSION}/ready", responses={404: {"model": InferError}, 503: {"model": ModelReady}})
async def version_ready(backend: AnyBackend, name: str, version: str) -> Response:
    """Say whether a version can classify."""
    return _model_ready(backend, name, version)


_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"const": "image"},
        "datatype": {"enum": ["BYTES", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "data": {"type": "array", "description": "Base64 of encoded images, or pixels."},
        "parameters": {"type": "object"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"enum": ["probabilities", "label"]}},
            },
        },
    },
}
_WHITE_PIXEL = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [255] * 3}]
}
_INFER: dict[str, Any] = {
    "responses": _errors(400, 404, 408, 413, 415, 429, 503, 504)
    | {200: {"description": "The requested outputs, in JSON or as binary data after it."}},
    "response_class": JSONResponse,
    "openapi_extra": {
        "requestBody": {
            "description": f"JSON; with the header {HEADER_LENGTH}, binary data after it.",
            "required": True,
            "content": {
                "application/json": {"schema": _REQUEST, "example": _WHITE_PIXEL},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}


@router.post(f"{_MODEL}/infer", **_INFER)
async def infer(request: Request, backend: ReadyBackend, name: str) -> Response:
    """Classify the images of a tensor."""
    return await _infer(request, backend, name)


@router.post(f"{_VERSION}/infer", **_INFER)
async def version_infer(
    request: Request, backend: ReadyBackend, name: str, version: str
) -> Response:
    """Classify the images of a tensor with a version."""
    return await _infer(request, backend, name, version)


async def _infer(
    request: Request, backend: Backend, name: str, version: str | None = None
) -> Response:
    _check_model(backend, name, version)
    limits = backend.settings
    body = await in_time_or_408(read_body(request, limits.max_json_bytes), backend)
    length = request.headers.get(HEADER_LENGTH)
    # Parsing the numbers of a tensor in JSON takes a while.
    parsed = await in_time_or_504(
        backend.in_thread(parse_infer_request, body, length, limits, partial(hold, request.scope)),
        backend,
    )
    classified = await in_time_or_504(backend.classify(parsed.images), backend)
    model = classified.model
    note(request.scope, model_version=model.version)
    inferred = infer_response(
        parsed, model.name, model.version, classified.class_names, classified.probabilities
    )
    return Response(inferred.content, headers=inferred.headers)


def _metadata(backend: Backend, name: str, version: str | None = None) -> ModelMetadata:
    _check_model(backend, name, version)
    return model_metadata(backend.model.name, backend.model.version, len(backend.class_names))


def _model_ready(backend: Backend, name: str, version: str | None = None) -> Response:
    _check_model(backend, name, version)
    return _ready(ModelReady(name=name, ready=backend.is_ready))


def _check_model(backend: Backend, name: str, version: str | None) -> None:
    check_model(backend.model.name, backend.model.version, name, version)


def _ready(state: ServerReady | ModelReady) -> JSONResponse:
    return JSONResponse(state.model_dump(), 200 if state.ready else 503)
