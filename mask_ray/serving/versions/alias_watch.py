"""Which versions of a registered model are served: an alias is followed as it moves.

Two halves, both without Ray and MLflow. One `AliasWatch` for an application reads the aliases and
vets a version before any replica meets it. A `VersionFollower` in each replica asks it what to
serve, loads that and switches. So a version is either served by all replicas or by none, one that
is refused costs one attempt, and a replica that starts late gets what the others have.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mask_ray.config import CHALLENGER, MaskRayError
from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.events import Refusal

# A version that could not be fetched is tried again ever more seldom, up to this.
_MAX_RETRY_S = 3600.0

logger = logging.getLogger(__name__)


def alias_of(uri: str) -> tuple[str, str] | None:
    """Name and alias of `models:/name@alias`; None for every other URI, which never moves."""
    matched = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    return None if matched is None else (matched[1], matched[2])


@dataclass(frozen=True)
class Wanted:
    """What every replica is to serve: versions, and the refused ones by alias."""

    champion: str
    challenger: str | None = None
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class _Retry:
    version: str
    after: float
    wait_s: float


class AliasWatch:
    """Reads aliases, vets the versions that they move to, and says what is to be served.

    Args:
        alias: The one to follow.
        has_challenger: Whether to follow `challenger` too.
        fallback: The version that is served until another one was vetted.
        read_aliases: Version by alias.
        vet: Raises ModelRefusedError for a version that must not be served, and any other
            MaskRayError where that could not be found out.
        max_age_s: For how long an answer of `read_aliases` is used.
        clock: Seconds.
    """

    def __init__(
        self,
        alias: str,
        *,
        has_challenger: bool,
        fallback: str,
        read_aliases: Callable[[], Mapping[str, str]],
        vet: Callable[[str], None],
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._alias = alias
        self._followed = (alias, CHALLENGER) if has_challenger else (alias,)
        self._fallback = fallback
        self._read_aliases = read_aliases
        self._vet = vet
        self._max_age_s = max_age_s
        self._clock = clock
        self._read_at: float | None = None
        self._served: dict[str, str] = {}
        self._refusals: dict[str, Refusal] = {}
        self._retries: dict[str, _Retry] = {}

    def wanted(self, serving: str | None) -> Wanted:
        """What a replica is to serve.

        Args:
            serving: The champion that it has; None: it has just started. A watch that has just
                started, after another one was lost, goes on from there.
        """
        if serving is not None:
            self._served.setdefault(self._alias, serving)
        now = self._clock()
        if self._read_at is None or now - self._read_at >= self._max_age_s:
            self._read_at = now
            self._read()
        return Wanted(
            champion=self._served.get(self._alias, self._fallback),
            challenger=self._served.get(CHALLENGER) if CHALLENGER in self._followed else None,
            refusals=tuple(self._refusals.values()),
        )

    def _read(self) -> None:
        try:
            versions = self._read_aliases()
        except MaskRayError as error:
            logger.warning("the aliases cannot be read, and stay as they were: %s", error)
            return
        for alias in self._followed:
            self._move(alias, versions.get(alias))

    def _move(self, alias: str, version: str | None) -> None:
        refusal = self._refusals.get(alias)
        if refusal is not None and refusal.version == version:
            return
        self._refusals.pop(alias, None)
        if alias in self._retries and self._retries[alias].version != version:
            del self._retries[alias]
        if version is None:
            # Requests still need a champion; nobody needs a challenger.
            if alias != self._alias:
                self._served.pop(alias, None)
            return
        known = self._fallback if alias == self._alias else None
        if version == self._served.get(alias, known):
            self._served[alias] = version
            return
        self._try(alias, version)

    def _try(self, alias: str, version: str) -> None:
        retry = self._retries.get(alias, _Retry(version, after=0, wait_s=self._max_age_s))
        if self._clock() < retry.after:
            return
        try:
            self._vet(version)
        except ModelRefusedError as error:
            self._refusals[alias] = Refusal(alias, version, str(error))
            logger.error("version %s, which is %s now, is refused: %s", version, alias, error)
        except MaskRayError as error:
            logger.warning("version %s cannot be had yet: %s", version, error)
            wait_s = min(2 * retry.wait_s, _MAX_RETRY_S)
            self._retries[alias] = _Retry(version, self._clock() + wait_s, wait_s)
            return
        else:
            self._served[alias] = version
        self._retries.pop(alias, None)
