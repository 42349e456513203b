"""The classifier as a Ray Serve deployment: one replica holds a model and the HTTP app before it.

A request is read within limits on the event loop; a thread decodes its images together with others
that wait, and classifies them as a batch, so the loop never waits for pixels. What decodes badly
is refused, and harms nothing that it waited with. Training code, TensorFlow and Keras are never
imported here.
"""

import asyncio
import gc
import logging
import threading
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
from mask_ray.images.decode import ImageError, RGBArray, decode_resized, resize
from mask_ray.models.predictor import Predictor, Probabilities, predict_together
from mask_ray.models.smoke_test import load_checked
from mask_ray.ray_internals import get_serve_logs_dir
from mask_ray.serving.batcher import Batcher
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.backend import Health, RefusedVersion
from mask_ray.serving.http.responses import Classified, ModelInfo
from mask_ray.serving.observability.access_log import AccessLog
from mask_ray.serving.observability.exchanges import Exchange
from mask_ray.serving.observability.metrics import Metrics
from mask_ray.serving.observability.samples import SampleLog
from mask_ray.serving.versions.challenger import Comparer, compare, takes_part
from mask_ray.serving.versions.events import ModelEvents
from mask_ray.serving.versions.follower import (
    FixedModels,
    LoadedModel,
    Models,
    Serving,
    VersionFollower,
)
from mask_ray.serving.versions.registry_actor import Followed, RegistryWatch, resolve_here

Asked = tuple[Predictor, bytes | RGBArray]
Outcome = Probabilities | Exception

P = ParamSpec("P")
T = TypeVar("T")

_METRICS_PERIOD_S = 1
_TRIAL_IMAGE = np.zeros((1, 1, 3), np.uint8)

logger = logging.getLogger(__name__)


class ModelFailedError(Exception):
    """Inference raised an error on a batch."""


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
        self.metrics = _metrics_of_replica()
        self._models = _models(settings, followed, self.metrics)
        self.metrics.serves(self.model.name, self.model.version)
        self._comparer = Comparer(self.metrics)
        # As many as CPUs: the threads are also what bounds the memory of large images.
        self._batcher = Batcher(
            self._work,
            num_threads=settings.num_threads,
            max_batch_size=settings.max_batch_size,
        )
        # Grows with each image and batch that is done: whether anything moves.
        self._progress = 0
        self._other_work = ThreadPoolExecutor(settings.num_threads, "other")
        self.is_ready = True
        # What is here stays. Else the collector looks through all of Ray again and again, and
        # requests wait for it.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
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
        return http_app(self, *observers, samples=samples)

    @property
    def serving(self) -> Serving:
        """The models of this moment. A request takes them once, and keeps to them."""
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
        """What is served, and what is not."""
        serving = self.serving
        return Health(
            model=_info(serving.champion),
            challenger=serving.challenger and _info(serving.challenger),
            refused=[RefusedVersion(**vars(refusal)) for refusal in serving.refusals],
        )

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        """Classify encoded or decoded images by one model: the champion, or the challenger.

        Each of them joins a batch by itself. Whose turn it is the first image decides.

        Raises:
            ImageError: as `images.decode`. Of several images the message names the first that is
                bad, as `images[3]: ...`.
        """
        serving = self.serving
        champion, challenger = serving.champion, serving.challenger
        share = self.settings.challenger_share
        if challenger is None or not takes_part(_bytes_of(images[0]), share):
            return await self._ask(champion, images)
        answered, classified = champion, None
        if self.settings.challenger_mode == "canary":
            answered, classified = challenger, await self._ask_challenger(challenger, images)
        if classified is None:
            answered, classified = champion, await self._ask(champion, images)
        self._offer_comparisons(serving, answered, images, classified)
        return classified

    async def _ask_challenger(
        self, challenger: LoadedModel, images: Sequence[bytes | RGBArray]
    ) -> Classified | None:
        """None: it fails, and the champion is to answer in its place."""
        try:
            return await self._ask(challenger, images)
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
        """Of encoded images: pixels come from clients that compare by themselves."""
        for image, row in zip(images, classified.probabilities, strict=True):
            if isinstance(image, bytes):
                named = dict(zip(classified.class_names, row.tolist(), strict=True))
                self._comparer.offer(
                    partial(compare, serving, answered, named, image, self.settings)
                )

    async def _ask(self, model: LoadedModel, images: Sequence[bytes | RGBArray]) -> Classified:
        predictor = model.predictor
        outcomes = await self._batcher.ask([(predictor, image) for image in images])
        # Of several it is always the first bad one that is named.
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ImageError):
                raise outcome if len(images) == 1 else _named(outcome, index)
        rows = [_row(outcome, model) for outcome in outcomes]
        for row in rows:
            best = int(row.argmax())
            self.metrics.answered(
                predictor.class_names[best], float(row[best]), model.name, model.version
            )
        return Classified(_info(model), predictor.class_names, np.stack(rows))

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Backend`."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._other_work, call)

    def _work(self, asked: list[Asked], is_alone: bool) -> list[Outcome]:
        """Decode and classify a batch, in one of its threads."""
        decoded = [self._decode(*one) for one in asked]
        good = [
            (predictor, image)
            for (predictor, _), image in zip(asked, decoded, strict=True)
            if not isinstance(image, Exception)
        ]
        started_s = time.perf_counter()
        answers = iter(predict_together(good, on_one_thread=not is_alone))
        if any(image is not _TRIAL_IMAGE for _, image in asked):
            self.metrics.inferred(len(good), time.perf_counter() - started_s)
        self._progress += 1
        return [image if isinstance(image, Exception) else next(answers) for image in decoded]

    def _decode(self, predictor: Predictor, image: bytes | RGBArray) -> RGBArray | Exception:
        if image is _TRIAL_IMAGE:
            return resize(_TRIAL_IMAGE, predictor.image_size)
        started_s = time.perf_counter()
        try:
            if isinstance(image, bytes):
                return decode_resized(image, predictor.image_size, self.settings)
            return resize(image, predictor.image_size)
        except Exception as error:
            # Whatever it is, such as a lack of memory, it is this image's alone.
            return error
        finally:
            self._progress += 1
            self.metrics.decoded(time.perf_counter() - started_s)

    async def check_health(self) -> None:
        """Classify one black image: a replica that is blocked still answers mere pings.

        Raises:
            TimeoutError: it was not classified in time, and neither was anything else.
            Exception: whatever inference raised. Serve restarts a replica that keeps failing.
        """
        progress = self._progress
        try:
            # Before Serve gives the check up.
            async with asyncio.timeout(0.8 * self.settings.health_check_timeout_s):
                await self._try_inference()
        except TimeoutError:
            # Behind images that take long it is busy, unless nothing moves.
            self.is_ready = self._progress != progress
            if not self.is_ready:
                raise
        except Exception:
            self.is_ready = False
            raise
        else:
            self.is_ready = True

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
    """Beside Serve's own log of the replica."""
    replica = serve.get_replica_context().replica_id
    return Path(get_serve_logs_dir(), f"access_{replica.unique_id}.log")


def _info(model: LoadedModel) -> ModelInfo:
    return ModelInfo(name=model.name, version=model.version)


def _bytes_of(image: bytes | RGBArray) -> bytes:
    return image if isinstance(image, bytes) else image.tobytes()


def _named(error: ImageError, index: int) -> ImageError:
    return type(error)(f"images[{index}]: {error}")


def _row(outcome: Outcome, model: LoadedModel) -> Probabilities:
    if isinstance(outcome, Exception):
        raise ModelFailedError(f"version {model.version} failed") from outcome
    return outcome


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
    predictor = load_checked(path, settings.num_lone_threads, class_names)
    predictor.warm_up(settings.max_batch_size)
    return LoadedModel(name, version, predictor)
