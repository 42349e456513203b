"""`POST /predict`: reads images and answers with predictions, in the project's own form."""

import base64
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from mask_ray.serving.http.auth import check_token, require_token
from mask_ray.serving.http.backend import (
    Backend,
    ReadyBackend,
    in_time_or_408,
    in_time_or_504,
    ready_backend,
)
from mask_ray.serving.http.errors import problem_responses
from mask_ray.serving.http.limits import ACCEPTED_FORMATS
from mask_ray.serving.http.payloads import read_images
from mask_ray.serving.http.query import reject_unknown_parameters
from mask_ray.serving.http.responses import Prediction, predictions
from mask_ray.serving.observability.exchanges import note
from mask_ray.serving.observability.request_ids import request_id
from mask_ray.serving.observability.samples import SampleLog


class _DirectRoute(APIRoute):
    """Skips FastAPI's dependencies for a request without parameters.

    FastAPI spends a quarter of a millisecond on them, more than the rest on the event loop takes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request, as FastAPI's custom routes do."""
        with_parameters = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.scope["query_string"]:
                return await with_parameters(request)
            await check_token(request)
            return await predict(request, await ready_backend(request))

        return handle


router = APIRouter(
    tags=["predict"], route_class=_DirectRoute, dependencies=[Depends(require_token)]
)
_ANSWER = TypeAdapter(Prediction | list[Prediction])

# A white pixel.
_PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
    )
).decode()

_FILE = {"type": "string", "format": "binary"}
_BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "Base64 of an encoded image, standard or URL-safe, or a data: URL of it.",
    "examples": [_PNG],
}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_FORM = {
    "type": "object",
    "description": "Files under any names. Several, or any under `images`, get a list as answer.",
    "properties": {"image": _FILE, "images": {"type": "array", "items": _FILE, "minItems": 1}},
    "anyOf": [{"required": ["image"]}, {"required": ["images"]}],
}
_JSON = {
    "oneOf": [
        _object(image=_BASE64),
        _object(images={"type": "array", "items": _BASE64, "minItems": 1}),
        _object(
            url={
                "type": "string",
                "format": "uri",
                "description": "Only for hosts that the service allows.",
            }
        ),
    ]
}
_JSON_EXAMPLES = {
    "one": {"summary": "One image", "value": {"image": _PNG}},
    "many": {"summary": "Several images", "value": {"images": [_PNG, _PNG]}},
    "url": {
        "summary": "An image behind a URL, on an allowed host",
        "value": {"url": "https://photos.example.org/face.jpg"},
    },
}
_BODY = {
    "description": f"{ACCEPTED_FORMATS}, an animation's first frame: one image as the body, files "
    "of a form, or base64 in JSON.",
    "required": True,
    "content": {
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        "binary/octet-stream": {"schema": _FILE},
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": _JSON, "examples": _JSON_EXAMPLES},
    },
}

TopK = Annotated[
    int | None,
    Query(ge=1, description="Return only the k most likely classes, in that order."),
]
Threshold = Annotated[
    float | None,
    Query(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Probability below which the label is `uncertain`.",
    ),
]


@router.post(
    "/predict",
    dependencies=[Depends(reject_unknown_parameters)],
    response_model=Prediction | list[Prediction],
    responses=problem_responses(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra={"requestBody": _BODY},
)
async def predict(
    request: Request, backend: ReadyBackend, top_k: TopK = None, threshold: Threshold = None
) -> Response:
    """Classify one image, or several.

    The answer to one image is a prediction. The answer to a list is a list in the same order, even
    for a list of one. If an image of a list is rejected, so is the request, and the error names the
    image.
    """
    _check_top_k(top_k, backend)
    payload = await in_time_or_408(
        read_images(request, backend.settings, request.app.state.fetch), backend
    )
    classified = await in_time_or_504(backend.classify(payload.images), backend)
    answers = predictions(classified, top_k, threshold)
    _observe(request, payload.images, answers)
    content = _ANSWER.dump_json(answers if payload.is_list else answers[0])
    return Response(content, media_type="application/json")


def _observe(request: Request, images: Sequence[bytes], answers: list[Prediction]) -> None:
    """Note the answers for the access log, and offer the images as samples."""
    labels = ",".join(prediction.label for prediction in answers)
    note(request.scope, label=labels, model_version=answers[0].model.version)
    samples: SampleLog | None = request.app.state.samples
    if samples is not None:
        for image, prediction in zip(images, answers, strict=True):
            samples.offer(image, partial(_sampled, request, prediction))


def _sampled(request: Request, prediction: Prediction) -> dict[str, Any]:
    return {
        "request_id": request_id(request.scope),
        "label": prediction.label,
        "probabilities": prediction.probabilities,
        "model": prediction.model.name,
        "model_version": prediction.model.version,
    }


def _check_top_k(top_k: int | None, backend: Backend) -> None:
    num_classes = len(backend.class_names)
    if top_k is not None and top_k > num_classes:
        raise HTTPException(422, f"top_k must be 1 to {num_classes}; got {top_k}")
