"""The classifier over HTTP: a FastAPI app on one Ray Serve deployment.

A request is read within limits, decoded in a thread, joined with others into a batch and
classified in another thread, so the event loop never waits for pixels. What decodes badly is
refused before it meets a batch. Training code, TensorFlow and Keras are never imported here.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_ray.challenger import Comparer, compare, takes_part
from mask_ray.config import ImageLimits, MaskRayError, ServeSettings, explain
from mask_ray.images import (
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    RGBArray,
    decode_resized,
)
from mask_ray.model_events import ModelEventCounts, ModelEvents
from mask_ray.predictor import Predictor, Probabilities, predict_together
from mask_ray.registry_watch import Followed, RegistryWatch, resolve_here
from mask_ray.versions import (
    FixedModels,
    LoadedModel,
    Models,
    Serving,
    VersionFollower,
    alias_of,
)
from mask_ray.vetting import ModelRefusedError, admit, check_answers

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)


class ApplicationError(RayServeException):
    """The application cannot be built as it is configured.

    Serve prints the message of its own exceptions, and the traceback of all others.
    """


class ModelFailedError(Exception):
    """Inference raised an error on a batch."""


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


class RefusedVersion(BaseModel):
    """A version that an alias names and that does not answer, and why."""

    alias: str
    version: str
    reason: str


class Health(BaseModel):
    """The replica has a model and can classify."""

    status: Literal["ready"] = "ready"
    model: ModelInfo
    challenger: ModelInfo | None = None
    refused: list[RefusedVersion] = []


@dataclass(frozen=True)
class Answer:
    """The probability of each class for an image, and the model that says so."""

    probabilities: dict[str, float]
    model: ModelInfo


class Classifier:
    """One replica: its models, the threads that feed them, and the HTTP app before it.

    Args:
        settings: With a `model_uri` that always means the same model.
        followed: The alias whose versions take that model's place as it moves, if any.

    Raises:
        tracking.ModelNotFoundError: `settings.model_uri` names no model.
        ModelRefusedError: it names a file that is not a classifier.
    """

    def __init__(self, settings: ServeSettings, followed: Followed | None = None) -> None:
        self.settings = settings
        self.events: ModelEvents = ModelEventCounts()
        self._models = _models(settings, followed, self.events)
        self._comparer = Comparer(self.events)
        # As many decoders as CPUs: the pool is also what bounds the memory of large images.
        self._decoding = ThreadPoolExecutor(settings.num_threads, "decode")
        self._inference = ThreadPoolExecutor(settings.max_concurrent_batches, "inference")
        self._batched = serve.batch(
            max_batch_size=settings.max_batch_size,
            batch_wait_timeout_s=settings.batch_wait_timeout_s,
            max_concurrent_batches=settings.max_concurrent_batches,
        )(self._infer)
        self.is_ready = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
        return http_app(self)

    @property
    def serving(self) -> Serving:
        """The models of this moment. A request takes them once, and keeps to them."""
        return self._models.serving

    @property
    def health(self) -> Health:
        """What is served, and what is not."""
        serving = self.serving
        return Health(
            model=_info(serving.champion),
            challenger=serving.challenger and _info(serving.challenger),
            refused=[RefusedVersion(**asdict(refusal)) for refusal in serving.refusals],
        )

    async def classify(self, encoded: bytes) -> Answer:
        """Classify one encoded image by the champion, or by the challenger if it is its turn.

        Raises:
            ImageError: as `images.decode`.
        """
        serving = self.serving
        champion, challenger = serving.champion, serving.challenger
        if challenger is None or not takes_part(encoded, self.settings.challenger_share):
            return await self._ask(champion, encoded)
        answered, answer = champion, None
        if self.settings.challenger_mode == "canary":
            answered, answer = challenger, await self._ask_challenger(challenger, encoded)
        if answer is None:
            answered, answer = champion, await self._ask(champion, encoded)
        self._comparer.offer(
            partial(compare, serving, answered, answer.probabilities, encoded, self.settings)
        )
        return answer

    async def _ask_challenger(self, challenger: LoadedModel, encoded: bytes) -> Answer | None:
        """None: it fails, and the champion is to answer in its place."""
        try:
            return await self._ask(challenger, encoded)
        except ModelFailedError as error:
            logger.warning("the challenger failed on an image: %s", error)
            return None

    async def _ask(self, model: LoadedModel, encoded: bytes) -> Answer:
        predictor = model.predictor
        image = await asyncio.get_running_loop().run_in_executor(
            self._decoding, decode_resized, encoded, predictor.image_size, self.settings
        )
        outcome: Probabilities | Exception = await self._batched((predictor, image))
        if isinstance(outcome, Exception):
            raise ModelFailedError(f"version {model.version} failed") from outcome
        named = zip(predictor.class_names, outcome, strict=True)
        return Answer({name: round(float(value), 6) for name, value in named}, _info(model))

    async def _infer(
        self, requests: list[tuple[Predictor, RGBArray]]
    ) -> list[Probabilities | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inference, predict_together, requests)

    async def check_health(self) -> None:
        """Classify one black image: a replica that is blocked still answers mere pings.

        Raises:
            Exception: whatever inference raised. Serve restarts a replica that keeps failing.
        """
        loop = asyncio.get_running_loop()
        predictor = self.serving.champion.predictor
        try:
            await loop.run_in_executor(self._inference, predictor.warm_up)
        except Exception:
            self.is_ready = False
            raise
        self.is_ready = True


def _info(model: LoadedModel) -> ModelInfo:
    return ModelInfo(name=model.name, version=model.version)


def _models(settings: ServeSettings, followed: Followed | None, events: ModelEvents) -> Models:
    """The replica's models: those of an alias, from now on, or the one of the settings."""
    if followed is None:
        return FixedModels(Serving(_load(settings.model_uri, settings, None)))
    follower = VersionFollower(
        followed.alias,
        fallback=followed.pinned,
        ask=RegistryWatch(serve.get_replica_context().app_name, followed).wanted,
        load=lambda version: _load(
            f"models:/{followed.name}/{version}", settings, followed.class_names
        ),
        events=events,
    )
    # A daemon: the following ends with the replica's process.
    threading.Thread(
        target=follower.follow_every,
        args=(followed.period_s, threading.Event()),
        name="follow",
        daemon=True,
    ).start()
    return follower


def _load(uri: str, settings: ServeSettings, class_names: tuple[str, ...] | None) -> LoadedModel:
    path, name, version = resolve_here(uri)
    predictor = admit(path, settings.num_threads, class_names)
    predictor.warm_up(settings.max_batch_size)
    return LoadedModel(name, version, predictor)


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the Serve application from the `args` of serve_config.yaml, see `ServeSettings`.

    An alias such as `@champion` is resolved to its version here, which all replicas begin with.
    As the alias moves they follow, unless `model_poll_s` is 0; see `versions`.

    Raises:
        ApplicationError: a setting is wrong, or there is no such model.
    """
    try:
        settings = ServeSettings.model_validate(args)
    except ValidationError as error:
        raise ApplicationError(explain(error)) from None
    pinned, followed = _pinned(settings)
    settings = settings.model_copy(update={"model_uri": pinned})
    deployment: serve.Deployment = _deploy(settings)(serve.ingress()(Classifier))
    return deployment.bind(settings, followed)


def _pinned(settings: ServeSettings) -> tuple[str, Followed | None]:
    """A URI that means the same to every replica, now and later, and what moves it, if anything."""
    # Not imported above: with it comes MLflow, which a replica can do without.
    from mask_ray import tracking

    uri = settings.model_uri
    try:
        resolved = tracking.resolve_model(uri)
        predictor = Predictor(resolved.path)
        check_answers(predictor)
    except ModelRefusedError as error:
        raise ApplicationError(f"{uri} is refused: {error}") from None
    except MaskRayError as error:
        raise ApplicationError(str(error)) from None
    if ":/" not in uri:
        return str(resolved.path), None
    if not uri.startswith("models:/") or resolved.version is None:
        return uri, None
    followed = _followed(settings, resolved.version, predictor.class_names)
    return f"models:/{resolved.name}/{resolved.version}", followed


def _followed(
    settings: ServeSettings, version: str, class_names: tuple[str, ...]
) -> Followed | None:
    moving = alias_of(settings.model_uri)
    if moving is None or settings.model_poll_s == 0:
        return None
    name, alias = moving
    return Followed(
        name=name,
        alias=alias,
        pinned=version,
        class_names=None if settings.allow_other_classes else class_names,
        has_challenger=settings.challenger_share > 0,
        period_s=settings.model_poll_s,
    )


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


def http_app(classifier: Classifier) -> FastAPI:
    """The HTTP face of a classifier. All its errors are `application/problem+json`."""
    app = FastAPI(
        title="mask_ray",
        summary="Image classification.",
        version="1",
        redoc_url=None,
        exception_handlers={
            HTTPException: _on_http_exception,
            ImageError: _on_image_error,
            RequestValidationError: _on_validation_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_unexpected,
        },
    )
    app.state.classifier = classifier
    app.include_router(router)
    return app


def _ready_classifier(request: Request) -> Classifier:
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
            answer = await classifier.classify(encoded)
    except TimeoutError:
        raise HTTPException(504, f"There was no answer within {timeout_s:g} s.") from None
    probabilities = answer.probabilities
    label = max(probabilities, key=probabilities.__getitem__)
    return Prediction(
        label=label,
        probability=probabilities[label],
        probabilities=probabilities,
        model=answer.model,
    )


@router.get("/healthz", responses=_problems(503))
async def healthz(classifier: ReadyClassifier) -> Health:
    """Say whether this replica can classify, and with which model."""
    return classifier.health


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
    return [Middleware(ProblemsForServeErrors)]
