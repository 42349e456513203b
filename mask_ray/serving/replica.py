"""One replica: its models, the threads that classify, and the HTTP app before them.

The event loop reads a request within its limits, and looks at what its images will cost. A thread
has a process decode the images that wait, of any requests, and classifies them as one batch, so
the loop never waits for pixels. What takes long is decoded before it joins a batch. An image that
cannot be decoded fails alone. Nothing here imports TensorFlow, Keras or training code.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from fastapi import FastAPI
from ray import serve

from mask_ray.config import ServeSettings
from mask_ray.images.decode import Examined, RGBArray, resize
from mask_ray.images.errors import ImageError
from mask_ray.models.predictor import Predictor, Probabilities, predict_together
from mask_ray.ray_internals import get_serve_logs_dir, serve_http_host
from mask_ray.serving.batcher import Batcher
from mask_ray.serving.decoding import ImageDecoding
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import Guard, Token
from mask_ray.serving.http.backend import Health, RefusedVersion
from mask_ray.serving.http.responses import Classified, ModelInfo
from mask_ray.serving.memory import (
    REQUEST_LEASE,
    Lease,
    MemoryBudget,
    NeverFitsError,
    OverBudgetError,
)
from mask_ray.serving.observability.access_log import AccessLog
from mask_ray.serving.observability.exchanges import Exchange
from mask_ray.serving.observability.metrics import Metrics
from mask_ray.serving.observability.samples import SampleLog
from mask_ray.serving.versions.challenger import Comparer, compare, takes_part
from mask_ray.serving.versions.follower import LoadedModel, Serving
from mask_ray.serving.versions.loading import load_models
from mask_ray.serving.versions.registry_actor import Followed
from mask_ray.serving.versions.rollout import FailedChecks

Item = tuple[Predictor, Examined | RGBArray]
Outcome = Probabilities | Exception

P = ParamSpec("P")
T = TypeVar("T")

_METRICS_PERIOD_S = 1
_TRIAL_IMAGE = np.zeros((1, 1, 3), np.uint8)

logger = logging.getLogger(__name__)


class ModelFailedError(Exception):
    """Inference failed on a batch."""


class Classifier:
    """What Serve runs in each replica.

    Args:
        settings: Settings whose `model_uri` always means the same model.
        followed: Alias whose versions replace that model when the alias moves, if any.
        tokens: Tokens that are valid beside those of `settings.token_file`.

    Raises:
        TokenError: the tokens cannot be used, or there is none and Serve listens beyond loopback.
        tracking.ModelNotFoundError: there is no model at `settings.model_uri`.
        ModelRefusedError: its file is not a classifier.
    """

    def __init__(
        self,
        settings: ServeSettings,
        followed: Followed | None = None,
        tokens: tuple[Token, ...] = (),
    ) -> None:
        self.settings = settings
        self._guard = Guard.of(settings, tokens)
        # Again here: the deploy may not have known the address.
        self._guard.check_exposure(serve_http_host())
        # Grows with each image decoded and each batch classified, for the health check.
        self._progress = 0
        self.metrics = _metrics_of_replica()
        self.is_ready = True
        self._failed_checks = FailedChecks()
        self._models = load_models(settings, followed, self.metrics, self._is_sound)
        self.metrics.serves(self.model.name, self.model.version)
        self._comparer = Comparer(self.metrics)
        self.memory = MemoryBudget(settings.request_memory_bytes)
        self._decoding = ImageDecoding(settings, self.memory, self._note_decoded)
        self._decoding.start()
        # One thread for each CPU.
        self._batcher = Batcher(
            self._classify_batch,
            num_threads=settings.num_threads,
            max_batch_size=settings.max_batch_size,
        )
        self._other_work = ThreadPoolExecutor(settings.num_threads, "other")
        # Objects that exist now stay. Without this, each full collection visits all objects of Ray
        # while requests wait.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the HTTP app. Serve calls this once the replica is constructed."""
        observers: list[Callable[[Exchange], None]] = [self.metrics.observe]
        if self.settings.access_log:
            observers.append(AccessLog(_access_log_path()))
        samples = None
        if self.settings.sample_path is not None and self.settings.sample_share:
            samples = SampleLog(
                Path(self.settings.sample_path),
                self.settings.sample_share,
                on_drop=self.metrics.sample_dropped,
            )
        return http_app(self, *observers, guard=self._guard, samples=samples)

    @property
    def serving(self) -> Serving:
        """The current models. A request reads this once, and uses the same models throughout."""
        return self._models.serving

    @property
    def model(self) -> ModelInfo:
        """The champion."""
        return _info(self.serving.champion)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The champion's classes."""
        return self.serving.champion.predictor.class_names

    @property
    def health(self) -> Health:
        """The served models and the rejected versions."""
        serving = self.serving
        return Health(
            model=_info(serving.champion),
            challenger=serving.challenger and _info(serving.challenger),
            refused=[RefusedVersion(**vars(refusal)) for refusal in serving.refusals],
        )

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        """Classify encoded or decoded images with one model: champion or challenger.

        The first image selects champion or challenger. Each image joins a batch on its own.

        Raises:
            ImageError: an image cannot be decoded. If there are several, the message names the
                first bad one: `images[3]: ...`.
            OverBudgetError: too much waits already.
        """
        serving = self.serving
        champion, challenger = serving.champion, serving.challenger
        share = self.settings.challenger_share
        if challenger is None or not takes_part(_bytes_of(images[0]), share):
            return await self._classify_with(champion, images)
        answered, classified = champion, None
        if self.settings.challenger_mode == "canary":
            answered, classified = challenger, await self._try_challenger(challenger, images)
        if classified is None:
            answered, classified = champion, await self._classify_with(champion, images)
        self._offer_comparisons(serving, answered, images, classified)
        return classified

    async def _try_challenger(
        self, challenger: LoadedModel, images: Sequence[bytes | RGBArray]
    ) -> Classified | None:
        """Ask the challenger; None if it fails, so that the champion answers."""
        try:
            return await self._classify_with(challenger, images)
        except ModelFailedError as error:
            logger.warning("the challenger failed on an image: %s", error)
            return None

    def _offer_comparisons(
        self,
        serving: Serving,
        answered: LoadedModel,
        images: Sequence[bytes | RGBArray],
        classified: Classified,
    ) -> None:
        """Offer each encoded image for comparison. Clients that send pixels compare themselves."""
        for image, row in zip(images, classified.probabilities, strict=True):
            if isinstance(image, bytes):
                by_class = dict(zip(classified.class_names, row.tolist(), strict=True))
                self._offer_comparison(serving, answered, image, by_class)

    def _offer_comparison(
        self, serving: Serving, answered: LoadedModel, image: bytes, by_class: dict[str, float]
    ) -> None:
        """Offer an image, which is held in memory until it was compared."""
        lease = self.memory.lease()
        try:
            lease.grow(len(image))
        except (OverBudgetError, NeverFitsError):
            self.metrics.not_compared("busy")
            return
        decode = self._decoding.decode_aside
        call = partial(compare, serving, answered, by_class, image, decode)
        if not self._comparer.offer(partial(_released_after, lease, call)):
            lease.release()

    async def _classify_with(
        self, model: LoadedModel, images: Sequence[bytes | RGBArray]
    ) -> Classified:
        predictor = model.predictor
        outcomes = await self._outcomes(predictor, images)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ImageError):
                if len(images) == 1:
                    raise outcome
                raise type(outcome)(f"images[{index}]: {outcome}")
        rows = [_row(outcome, model) for outcome in outcomes]
        for row in rows:
            best = int(row.argmax())
            self.metrics.answered(
                predictor.class_names[best], float(row[best]), model.name, model.version
            )
        return Classified(_info(model), predictor.class_names, np.stack(rows))

    async def _outcomes(
        self, predictor: Predictor, images: Sequence[bytes | RGBArray]
    ) -> list[Outcome]:
        """Classify what can be decoded; an image's error takes its place."""
        # One after the other: a list of slow images would otherwise fill their lane by itself, and
        # be refused even by an idle replica. Once one is refused, no other is decoded in vain.
        prepared = [await self._prepare(image, predictor) for image in images]
        good = [(predictor, image) for image in prepared if not isinstance(image, ImageError)]
        answers = iter(await self._ask(good) if good else ())
        return [image if isinstance(image, ImageError) else next(answers) for image in prepared]

    async def _ask(self, items: list[Item]) -> list[Outcome]:
        """Have items classified, whose memory is held until the batcher has dropped them."""
        lease = REQUEST_LEASE.get()
        if lease is None:
            return await self._batcher.ask(items)
        for _ in items:
            lease.keep()
        return await self._batcher.ask(items, lease.release)

    async def _prepare(
        self, image: bytes | RGBArray, predictor: Predictor
    ) -> Examined | RGBArray | ImageError:
        if not isinstance(image, bytes):
            return image
        try:
            return await self._decoding.prepare(image, predictor.image_size)
        except ImageError as error:
            return error

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread beside those that classify; see `Backend`."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._other_work, call)

    def _classify_batch(self, items: list[Item], is_alone: bool) -> list[Outcome]:
        """Decode and classify a batch. Runs in a thread of the batcher."""
        decoded = self._decode(items)
        good = [
            (predictor, image)
            for (predictor, _), image in zip(items, decoded, strict=True)
            if not isinstance(image, Exception)
        ]
        started_s = time.perf_counter()
        answers = iter(predict_together(good, on_one_thread=not is_alone))
        if any(image is not _TRIAL_IMAGE for _, image in items):
            self.metrics.inferred(len(good), time.perf_counter() - started_s)
        self._progress += 1
        return [image if isinstance(image, Exception) else next(answers) for image in decoded]

    def _decode(self, items: list[Item]) -> list[RGBArray | Exception]:
        files = [
            (image, predictor.image_size)
            for predictor, image in items
            if isinstance(image, Examined)
        ]
        decoded = iter(self._decoding.decode_batch(files) if files else ())
        return [
            next(decoded) if isinstance(image, Examined) else self._resize(predictor, image)
            for predictor, image in items
        ]

    def _resize(self, predictor: Predictor, pixels: RGBArray) -> RGBArray | Exception:
        started_s = time.perf_counter()
        try:
            return resize(pixels, predictor.image_size)
        except Exception as error:
            # Whatever it is, such as a lack of memory, it fails only this image.
            return error
        finally:
            if pixels is not _TRIAL_IMAGE:
                self._note_decoded(time.perf_counter() - started_s)

    def _note_decoded(self, seconds: float) -> None:
        self._progress += 1
        self.metrics.decoded(seconds)

    async def check_health(self) -> None:
        """Classify one black image. A blocked replica would still answer a ping.

        Raises:
            TimeoutError: nothing was decoded or classified within the time limit.
            DecodersError: no process for decoding starts.
            Exception: whatever inference raised. Serve restarts a replica that keeps failing.
        """
        progress = self._progress
        version = self.serving.champion.version
        try:
            # Shorter than Serve's own timeout of this check.
            async with asyncio.timeout(0.8 * self.settings.health_check_timeout_s):
                if self._decoding.is_broken:
                    await asyncio.to_thread(self._decoding.recover)
                await self._try_inference()
        except TimeoutError:
            # A replica that makes progress is busy, not blocked; so is one that decodes an image
            # which has not yet taken `decode_timeout_s`.
            self.is_ready = self._progress != progress or self._decoding.is_in_time
            if not self.is_ready:
                raise
        except Exception:
            self.is_ready = False
            raise
        else:
            self.is_ready = True
        finally:
            # A version is not to blame for a replica that cannot decode.
            self._failed_checks.note(version, not (self.is_ready or self._decoding.is_broken))

    def _is_sound(self, version: str | None) -> bool:
        """Whether no two health checks failed in a row with this version."""
        return not self._failed_checks.blame(version)

    async def _try_inference(self) -> None:
        predictor = self.serving.champion.predictor
        (outcome,) = await self._batcher.ask([(predictor, _TRIAL_IMAGE)])
        if isinstance(outcome, Exception):
            raise outcome


def _metrics_of_replica() -> Metrics:
    replica = serve.get_replica_context()
    metrics = Metrics(
        {
            "application": replica.app_name,
            "deployment": replica.deployment,
            "replica": replica.replica_id.unique_id,
        }
    )
    metrics.report_every(_METRICS_PERIOD_S)
    return metrics


def _access_log_path() -> Path:
    """The replica's file, beside Serve's own log of it."""
    replica = serve.get_replica_context().replica_id
    return Path(get_serve_logs_dir(), f"access_{replica.unique_id}.log")


def _info(model: LoadedModel) -> ModelInfo:
    return ModelInfo(name=model.name, version=model.version)


def _bytes_of(image: bytes | RGBArray) -> bytes:
    return image if isinstance(image, bytes) else image.tobytes()


def _released_after(lease: Lease, comparison: Callable[[], T]) -> T:
    try:
        return comparison()
    finally:
        lease.release()


def _row(outcome: Outcome, model: LoadedModel) -> Probabilities:
    if isinstance(outcome, Exception):
        raise ModelFailedError(f"version {model.version} failed") from outcome
    return outcome
