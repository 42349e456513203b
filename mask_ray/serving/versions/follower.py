"""Keeps one replica on the model versions that `AliasWatch` wants. No Ray and no MLflow here."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mask_ray.config import CHALLENGER
from mask_ray.models.predictor import Predictor
from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.alias_watch import Wanted
from mask_ray.serving.versions.events import ModelEvents, Refusal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and what the registry calls it."""

    name: str
    version: str | None
    predictor: Predictor = field(repr=False)


@dataclass(frozen=True)
class Serving:
    """What a replica serves. Replaced as a whole, so a request that took one keeps its models."""

    champion: LoadedModel
    challenger: LoadedModel | None = None
    refusals: tuple[Refusal, ...] = ()


class Models(Protocol):
    """Whatever says which models there are at this moment."""

    @property
    def serving(self) -> Serving:
        """They change as a whole."""


@dataclass(frozen=True)
class FixedModels:
    """Models that never change."""

    serving: Serving


class VersionFollower:
    """Keeps one replica on the versions that are wanted.

    Args:
        alias: The one that the champion is served for.
        fallback: The version to begin with when nobody can be asked.
        ask: Given the version that is served, or None, what is wanted.
        load: A version, ready to answer.
        events: Who is told.

    Raises:
        MaskRayError: the fallback cannot be loaded either.
    """

    def __init__(
        self,
        alias: str,
        *,
        fallback: str,
        ask: Callable[[str | None], Wanted],
        load: Callable[[str], LoadedModel],
        events: ModelEvents,
    ) -> None:
        self._alias = alias
        self._ask = ask
        self._load = load
        self._events = events
        # Versions that failed here, by alias: not tried again until the alias has moved.
        self._refusals: dict[str, Refusal] = {}
        self._told: set[Refusal] = set()
        self.serving = self._first(fallback)

    def follow(self) -> None:
        """Ask once, and load and switch where something else is wanted."""
        serving = self.serving
        wanted = self._ask(serving.champion.version)
        champion = self._follow_one(self._alias, wanted.champion, serving.champion)
        challenger = self._follow_one(CHALLENGER, wanted.challenger, serving.challenger)
        assert champion is not None, "a champion is always wanted"
        refusals = {refusal.alias: refusal for refusal in wanted.refusals} | self._refusals
        self.serving = Serving(champion, challenger, tuple(refusals.values()))
        self._tell(serving)

    def follow_every(self, period_s: float, stopped: threading.Event) -> None:
        """`follow` again and again, until it is stopped. What goes wrong is logged."""
        while not stopped.wait(period_s):
            try:
                self.follow()
            except Exception as error:
                # A registry, network or disk that fails must not end the following.
                logger.warning("versions stay as they are, since asking failed: %s", error)

    def _first(self, fallback: str) -> Serving:
        try:
            wanted = self._ask(None).champion
            return Serving(self._load(wanted))
        except Exception as error:
            logger.warning("starting with version %s: %s", fallback, error)
            return Serving(self._load(fallback))

    def _follow_one(
        self, alias: str, version: str | None, served: LoadedModel | None
    ) -> LoadedModel | None:
        refusal = self._refusals.get(alias)
        if refusal is not None and refusal.version == version:
            return served
        self._refusals.pop(alias, None)
        if version is None:
            return None
        if served is not None and served.version == version:
            return served
        try:
            return self._load(version)
        except ModelRefusedError as error:
            self._refusals[alias] = Refusal(alias, version, str(error))
        except Exception as error:
            logger.warning("version %s cannot be loaded yet: %s", version, error)
        return served

    def _tell(self, before: Serving) -> None:
        now = self.serving
        moved = [
            (self._alias, before.champion, now.champion),
            (CHALLENGER, before.challenger, now.challenger),
        ]
        for alias, old, new in moved:
            if old is not new:
                version = None if new is None else new.version
                logger.info("%s is version %s now", alias, version)
                self._events.switched(alias, version)
        for refusal in set(now.refusals) - self._told:
            logger.error(
                "version %s, which is %s now, is refused: %s",
                refusal.version,
                refusal.alias,
                refusal.reason,
            )
            self._events.refused(refusal)
        self._told = set(now.refusals)
