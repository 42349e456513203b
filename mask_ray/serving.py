"""The classifier as a Ray Serve deployment: one replica holds a model and the HTTP app before it.

A request is read within limits, decoded in a thread, joined with others into a batch and
classified in another thread, so the event loop never waits for pixels. What decodes badly is
refused before it meets a batch. Training code, TensorFlow and Keras are never imported here.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from starlette.middleware import Middleware

from mask_ray.config import ServeSettings, explain
from mask_ray.guard import Guard, TokenError
from mask_ray.http_app import http_app
from mask_ray.images import ImageError, RGBArray, decode_resized, resize
from mask_ray.predictions import Classified, ModelInfo
from mask_ray.predictor import ModelFileError, Predictor, Probabilities
from mask_ray.problems import RETRY_AFTER_S, ProblemsForServeErrors

P = ParamSpec("P")
T = TypeVar("T")


class ApplicationError(RayServeException):
    """The application cannot be built as it is configured.

    Serve prints the message of its own exceptions, and the traceback of all others.
    """


class Classifier:
    """One replica: a model, the threads that feed it, and the HTTP app before it.

    Raises:
        tracking.ModelNotFoundError: `settings.model_uri` names no model.
        ModelFileError: it names a file that is not a classifier.
    """

    def __init__(self, settings: ServeSettings) -> None:
        path, self.model = _resolve_here(settings.model_uri)
        self.settings = settings
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
        return http_app(self)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's classes."""
        return self._predictor.class_names

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        """Classify encoded or decoded images. Each of them joins a batch by itself.

        Raises:
            ImageError: as `images.decode`. Of several images the message names the first that is
                bad, as `images[3]: ...`.
        """
        decoded = await self._decode(images)
        rows: list[Probabilities] = await asyncio.gather(*map(self._batched, decoded))
        return Classified(self.model, self.class_names, np.stack(rows))

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in one of the threads that decode."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._decoding, call)

    async def _decode(self, images: Sequence[bytes | RGBArray]) -> list[RGBArray]:
        if len(images) == 1:
            return [await self.in_thread(self._decode_one, images[0])]
        coming = (self.in_thread(self._decode_one, image) for image in images)
        decoded: list[RGBArray] = []
        # All of them, so that it is always the first bad one that is named.
        for index, result in enumerate(await asyncio.gather(*coming, return_exceptions=True)):
            if isinstance(result, ImageError):
                raise type(result)(f"images[{index}]: {result}")
            if isinstance(result, BaseException):
                raise result
            decoded.append(result)
        return decoded

    def _decode_one(self, image: bytes | RGBArray) -> RGBArray:
        if isinstance(image, bytes):
            return decode_resized(image, self._predictor.image_size, self.settings)
        return resize(image, self._predictor.image_size)

    async def _infer(self, images: list[RGBArray]) -> list[Probabilities]:
        loop = asyncio.get_running_loop()
        batch = np.stack(images)
        return list(await loop.run_in_executor(self._inference, self._predictor.predict, batch))

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
    _check_tokens(settings)
    settings = settings.model_copy(update={"model_uri": _pinned(settings.model_uri)})
    deployment: serve.Deployment = _deploy(settings)(serve.ingress()(Classifier))
    return deployment.bind(settings)


def _check_tokens(settings: ServeSettings) -> None:
    """Refuse here what every replica would refuse."""
    try:
        Guard(settings.token_file)
    except TokenError as error:
        raise ApplicationError(str(error)) from None


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


def problem_middleware() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, which Serve reads when it starts."""
    return [Middleware(ProblemsForServeErrors), Middleware(RequestIds)]
