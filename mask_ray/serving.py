"""The classifier over HTTP: a FastAPI app on one Ray Serve deployment.

A request is read within limits, decoded in a thread, joined with others into a batch and
classified in another thread, so the event loop never waits for pixels. What decodes badly is
refused before it meets a batch. Training code, TensorFlow and Keras are never imported here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import ray
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.access_log import AccessLog
from mask_ray.config import ImageLimits, ServeSettings, explain
from mask_ray.exchanges import Exchange, Exchanges, note
from mask_ray.images import (
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    RGBArray,
    decode_resized,
)
from mask_ray.metrics import Metrics
from mask_ray.predictor import Images, ModelFileError, Predictor, Probabilities
from mask_ray.request_ids import RequestIds, request_id
from mask_ray.samples import SampleLog

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class ApplicationError(RayServeException):
    """The application cannot be built as it is configured.

    Serve prints the message of its own exceptions, and the traceback of all others.
    """


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class ModelInfo(BaseModel):
    """The model that answers. A model served from a file has no version."""

    name: str
    version: str | None


class Prediction(BaseModel):
    """The likeliest class of one image, and the probability of each."""

    label: str
    probability: float
    probabilities: dict[str, float]
    model: ModelInfo


class Health(BaseModel):
    """The replica has a model and can classify."""

    status: Literal["ready"] = "ready"
    model: ModelInfo


class Classifier:
    """One replica: a model, the threads that feed it, and the HTTP app before it.

    Raises:
        tracking.ModelNotFoundError: `settings.model_uri` names no model.
        ModelFileError: it names a file that is not a classifier.
    """

    def __init__(self, settings: ServeSettings) -> None:
        path, self.model = _resolve_here(settings.model_uri)
        self.settings = settings
        self.metrics = _metrics_of_replica()
        self.metrics.serves(self.model.name, self.model.version)
        self.samples = SampleLog(
            Path(settings.sample_path or "."),
            settings.sample_share,
            on_drop=self.metrics.sample_dropped,
        )
        self._predictor = Predictor(path, settings.num_threads)
        # As many decoders as CPUs: the pool is also what bounds the memory of large images.
        self._decoding = ThreadPoolExecutor(settings.num_threads, "decode")
        self._inference = ThreadPoolExecutor(settings.max_concurrent_batches, "inference")
        self._batched = serve.batch(
            max_batch_size=settings.max_batch_size,
            batch_wait_timeout_s=settings.batch_wait_timeout_s,
            max_concurrent_batches=settings.max_concurrent_batches,
        )(self._infer)
        self._predictor.warm_up(settings.max_batch_size)
        self.is_ready = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
        observers: list[Callable[[Exchange], None]] = [self.metrics.observe]
        if self.settings.access_log:
            observers.append(AccessLog())
        return http_app(self, *observers)

    async def classify(self, encoded: bytes) -> dict[str, float]:
        """The probability of each class for one encoded image.

        Raises:
            ImageError: as `images.decode`.
        """
        image = await asyncio.get_running_loop().run_in_executor(
            self._decoding, self._decode, encoded
        )
        row: Probabilities = await self._batched(image)
        probabilities = {
            name: round(probability, 6)
            for name, probability in zip(self._predictor.class_names, row.tolist(), strict=True)
        }
        label = max(probabilities, key=probabilities.__getitem__)
        self.metrics.answered(label, probabilities[label], self.model.name, self.model.version)
        return probabilities

    def _decode(self, encoded: bytes) -> RGBArray:
        started_s = time.perf_counter()
        try:
            return decode_resized(encoded, self._predictor.image_size, self.settings)
        finally:
            self.metrics.decoded(time.perf_counter() - started_s)

    async def _infer(self, images: list[RGBArray]) -> list[Probabilities]:
        loop = asyncio.get_running_loop()
        batch = np.stack(images)
        return list(await loop.run_in_executor(self._inference, self._predict, batch))

    def _predict(self, batch: Images) -> Probabilities:
        started_s = time.perf_counter()
        probabilities = self._predictor.predict(batch)
        self.metrics.inferred(len(batch), time.perf_counter() - started_s)
        return probabilities

    async def check_health(self) -> None:
        """Classify one black image: a replica that is blocked still answers mere pings.

        Raises:
            Exception: whatever inference raised. Serve restarts a replica that keeps failing.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._inference, self._predictor.warm_up)
        except Exception:
            self.is_ready = False
            raise
        self.is_ready = True


def _metrics_of_replica() -> Metrics:
    replica = serve.get_replica_context()
    return Metrics(
        {
            "application": replica.app_name,
            "deployment": replica.deployment,
            "replica": replica.replica_id.unique_id,
        }
    )


def _resolve_here(uri: str) -> tuple[str, ModelInfo]:
    """Path on the replica's node and name of the model, found in a process that ends with it.

    MLflow would stay in the replica's memory, over 100 MB.

    Raises:
        tracking.ModelNotFoundError: there is none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    resolved = _resolve.options(scheduling_strategy=here).remote(uri)
    # Not ray.get, which warns in the async actor that a replica is, though nobody waits yet.
    path, name, version = resolved.future().result()
    return path, ModelInfo(name=name, version=version)


@ray.remote(num_cpus=0, max_calls=1)
def _resolve(uri: str) -> tuple[str, str, str | None]:
    from mask_ray import tracking

    resolved = tracking.resolve_model(uri)
    # Plain values: to unpickle a ResolvedModel, the replica would import MLflow after all.
    return str(resolved.path), resolved.name, resolved.version


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the Serve application from the `args` of serve_config.yaml, see `ServeSettings`.

    An alias such as `@champion` is resolved to its version here, once, so that all replicas
    answer with the same model however late they start.

    Raises:
        ApplicationError: a setting is wrong, or there is no such model.
    """
    try:
        settings = ServeSettings.model_validate(args)
    except ValidationError as error:
        raise ApplicationError(explain(error)) from None
    settings = settings.model_copy(update={"model_uri": _pinned(settings.model_uri)})
    deployment: serve.Deployment = _deploy(settings)(serve.ingress()(Classifier))
    return deployment.bind(settings)


def _pinned(uri: str) -> str:
    """A URI of the same model that means the same to every replica, now and later."""
    # Not imported above: with it comes MLflow, which a replica can do without.
    from mask_ray import tracking

    try:
        resolved = tracking.resolve_model(uri)
        Predictor(resolved.path)
    except (tracking.ModelNotFoundError, tracking.TrackingError, ModelFileError) as error:
        raise ApplicationError(str(error)) from None
    if ":/" not in uri:
        return str(resolved.path)
    if uri.startswith("models:/") and resolved.version is not None:
        return f"models:/{resolved.name}/{resolved.version}"
    return uri


def _deploy(settings: ServeSettings) -> Callable[[type], serve.Deployment]:
    return serve.deployment(
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
            # Up within seconds of a rush, down one step at a time once it is surely over.
            "look_back_period_s": 15,
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,
            "downscaling_factor": 0.5,
        },
        ray_actor_options={"num_cpus": settings.num_threads},
        health_check_period_s=5,
        health_check_timeout_s=20,
        # Long enough for every request that was accepted to end in an answer.
        graceful_shutdown_timeout_s=2 * settings.request_timeout_s + 5,
        max_constructor_retry_count=3,
    )


def http_app(classifier: Classifier, *observers: Callable[[Exchange], None]) -> FastAPI:
    """The HTTP face of a classifier. All its errors are `application/problem+json`.

    Args:
        observers: Shown every request that is over.
    """
    app = FastAPI(
        title="mask_ray",
        summary="Image classification.",
        version="1",
        redoc_url=None,
        lifespan=_lifespan,
        exception_handlers={
            HTTPException: _on_http_exception,
            ImageError: _on_image_error,
            RequestValidationError: _on_validation_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_unexpected,
        },
    )
    app.state.classifier = classifier
    app.add_middleware(Exchanges, *observers)
    app.add_middleware(RequestIds)
    app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.classifier.samples.close)


# Not a plain function: FastAPI would call it in a thread, for every request.
async def _ready_classifier(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    if not classifier.is_ready:
        raise HTTPException(503, "The model is not ready.", {"Retry-After": str(RETRY_AFTER_S)})
    return classifier


ReadyClassifier = Annotated[Classifier, Depends(_ready_classifier)]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGE_BODY = {
    "description": "One encoded image: JPEG, PNG, WebP, GIF (its first frame) or BMP.",
    "required": True,
    "content": {"image/*": _BINARY, "application/octet-stream": _BINARY},
}

# The last is what `curl --data-binary` says of any body unless told otherwise.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")

router = APIRouter()


@router.post(
    "/predict",
    responses=_problems(400, 408, 413, 415, 429, 500, 503, 504),
    openapi_extra={"requestBody": _IMAGE_BODY},
)
async def predict(request: Request, classifier: ReadyClassifier) -> Prediction:
    """Classify the image in the request's body."""
    timeout_s = classifier.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            encoded = await _read_image(request, classifier.settings)
    except TimeoutError:
        raise HTTPException(408, f"The image did not arrive within {timeout_s:g} s.") from None
    try:
        async with asyncio.timeout(timeout_s):
            probabilities = await classifier.classify(encoded)
    except TimeoutError:
        raise HTTPException(504, f"There was no answer within {timeout_s:g} s.") from None
    prediction = Prediction(
        label=max(probabilities, key=probabilities.__getitem__),
        probability=max(probabilities.values()),
        probabilities=probabilities,
        model=classifier.model,
    )
    note(request.scope, label=prediction.label, model_version=prediction.model.version)
    classifier.samples.offer(encoded, lambda: _sampled(request, prediction))
    return prediction


def _sampled(request: Request, prediction: Prediction) -> dict[str, Any]:
    return {
        "request_id": request_id(request.scope),
        "label": prediction.label,
        "probabilities": prediction.probabilities,
        "model": prediction.model.name,
        "model_version": prediction.model.version,
    }


@router.get("/healthz", responses=_problems(503))
async def healthz(classifier: ReadyClassifier) -> Health:
    """Say whether this replica can classify, and with which model."""
    return Health(model=classifier.model)


async def _read_image(request: Request, limits: ImageLimits) -> bytes:
    """The encoded image of a request, whichever way its body carries it.

    Raises:
        HTTPException: 415, the body is of another kind.
        ImageTooLargeError: over the limit, declared or sent. Nothing past it is read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not content_type.startswith("image/") and content_type not in _RAW_TYPES:
        raise HTTPException(
            415,
            "Content-Type must be image/* or application/octet-stream, or be left out; "
            f"got {content_type}",
        )
    return await _read_within(request, limits.max_image_bytes)


async def _read_within(request: Request, max_bytes: int) -> bytes:
    num_bytes = int(request.headers.get("content-length", 0))
    chunks = []
    if num_bytes <= max_bytes:
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
            chunks.append(chunk)
    if num_bytes > max_bytes:
        raise ImageTooLargeError(f"image has over {max_bytes} bytes; at most that are allowed")
    return b"".join(chunks)


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_TYPE)


async def _on_http_exception(_: Request, error: Any) -> JSONResponse:
    return _problem(error.status_code, error.detail, error.headers)


async def _on_image_error(_: Request, error: Any) -> JSONResponse:
    status = 400
    if isinstance(error, ImageTooLargeError):
        status = 413
    elif isinstance(error, ImageFormatError):
        status = 415
    return _problem(status, str(error))


async def _on_validation_error(_: Request, error: Any) -> JSONResponse:
    mistakes = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _problem(422, "; ".join(mistakes))


async def _on_disconnect(_: Request, error: Any) -> JSONResponse:
    return _problem(400, "The connection closed before the image had arrived.")


async def _on_unexpected(_: Request, error: Any) -> JSONResponse:
    # Starlette raises the error again once this is sent, and Serve logs it.
    return _problem(500, "The server failed on this request.")


_SERVE_DETAILS = {
    404: "There is nothing at this path.",
    408: "There was no answer in time.",
    429: "All replicas are busy.",
    503: "No replica is ready.",
}


class ProblemsForServeErrors:
    """ASGI middleware: what Serve itself answers in plain text becomes a problem.

    Serve refuses an overload, for one, before the app is called.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on all that is not an error of Serve's own."""
        is_replaced = False

        async def send_problem_instead(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and _is_plain_error(message):
                is_replaced = True
                await _problem_for(message)(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, send_problem_instead)


def _is_plain_error(start: Message) -> bool:
    content_type = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] >= 400 and content_type.startswith("text/plain")


def _problem_for(start: Message) -> JSONResponse:
    status = start["status"]
    kept = {
        name: value
        for name, value in Headers(raw=start["headers"]).items()
        if name not in ("content-type", "content-length")
    }
    return _problem(status, _SERVE_DETAILS.get(status, "The server failed on this request."), kept)


def problem_middleware() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, which Serve reads when it starts."""
    return [Middleware(ProblemsForServeErrors), Middleware(RequestIds)]
