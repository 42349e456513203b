"""Keeps a replica on the versions that `AliasWatch` decided on. No Ray and no MLflow here."""

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
    """A model in memory, with its name and version in the registry."""

    name: str
    version: str | None
    predictor: Predictor = field(repr=False)


@dataclass(frozen=True)
class Serving:
    """The models that a replica serves. Replaced as a whole: a request keeps the one it read."""

    champion: LoadedModel
    challenger: LoadedModel | None = None
    refusals: tuple[Refusal, ...] = ()


class Models(Protocol):
    """Holds the current models of a replica."""

    @property
    def serving(self) -> Serving:
        """The current models."""


@dataclass(frozen=True)
class FixedModels:
    """Models that never change."""

    serving: Serving


class VersionFollower:
    """Loads the wanted versions into one replica.

    Args:
        alias: Alias of the champion.
        fallback: Version to start with if `ask` fails.
        ask: Returns the wanted versions; called with the served version, or None at the start.
        load: Loads a version.
        events: Receives switches and rejections.

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
        # Versions that this replica rejected, by alias. Not tried again until the alias moves.
        self._refusals: dict[str, Refusal] = {}
        self._reported: set[Refusal] = set()
        self.serving = self._load_first(fallback)

    def follow(self) -> None:
        """Ask once; load the wanted versions and switch to them."""
        serving = self.serving
        wanted = self._ask(serving.champion.version)
        champion = self._follow_one(self._alias, wanted.champion, serving.champion)
        challenger = self._follow_one(CHALLENGER, wanted.challenger, serving.challenger)
        assert champion is not None, "a champion is always wanted"
        refusals = {refusal.alias: refusal for refusal in wanted.refusals} | self._refusals
        self.serving = Serving(champion, challenger, tuple(refusals.values()))
        self._report_changes(serving)

    def follow_every(self, period_s: float, stopped: threading.Event) -> None:
        """Call `follow` periodically until stopped, and log its errors."""
        while not stopped.wait(period_s):
            try:
                self.follow()
            except Exception as error:
                # A failing registry, network or disk must not end this loop.
                logger.warning("the versions stay, since they could not be checked: %s", error)

    def _load_first(self, fallback: str) -> Serving:
        try:
            wanted = self._ask(None)
            return Serving(self._load(wanted.champion), refusals=wanted.refusals)
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

    def _report_changes(self, before: Serving) -> None:
        now = self.serving
        moved = [
            (self._alias, before.champion, now.champion),
            (CHALLENGER, before.challenger, now.challenger),
        ]
        for alias, old, new in moved:
            if old is not new:
                version = None if new is None else new.version
                logger.info("%s is now version %s", alias, version)
                self._events.switched(alias, version)
        for refusal in set(now.refusals) - self._reported:
            logger.error(
                "version %s, now %s, is rejected: %s",
                refusal.version,
                refusal.alias,
                refusal.reason,
            )
            self._events.refused(refusal)
        self._reported = set(now.refusals)
