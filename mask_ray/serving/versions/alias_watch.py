"""Follows the aliases of a registered model, and decides which versions to serve.

One `AliasWatch` for an application reads the aliases, and tries a version before any replica loads
it. A `VersionFollower` in each replica (`follower`) asks it for the versions to serve, loads them
and switches. So all replicas serve a version or none does, a rejected version costs one attempt,
and a replica that starts late gets the same version as the others. No Ray and no MLflow here.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mask_ray.config import CHALLENGER, MaskRayError
from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.events import Refusal
from mask_ray.serving.versions.kept_refusals import KeptRefusals
from mask_ray.serving.versions.rollout import Rollout

# Longest wait before a version that could not be fetched is tried again. The waits double.
_MAX_RETRY_S = 3600.0

logger = logging.getLogger(__name__)


def alias_of(uri: str) -> tuple[str, str] | None:
    """Return name and alias of `models:/name@alias`, or None for any other URI."""
    matched = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    return None if matched is None else (matched[1], matched[2])


@dataclass(frozen=True)
class Wanted:
    """The versions that every replica should serve, and the rejected ones."""

    champion: str
    challenger: str | None = None
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class _Retry:
    version: str
    after: float
    wait_s: float


class AliasWatch:
    """Reads aliases, tries the versions that they move to, and decides which to serve.

    Args:
        alias: Alias to follow.
        has_challenger: Whether to follow `challenger` too.
        fallback: Version to serve until another one passes `vet`.
        read_aliases: Returns the version of each alias.
        vet: Raises ModelRefusedError for a version that must not be served, and another
            MaskRayError if it could not be tried.
        kept: Versions that failed health checks, which are not tried again.
        max_age_s: How long to use a result of `read_aliases`, in seconds.
        trial_s: How long one replica serves a new champion before the others do; 0: no trial.
        clock: Returns seconds.
    """

    def __init__(
        self,
        alias: str,
        *,
        has_challenger: bool,
        fallback: str,
        read_aliases: Callable[[], Mapping[str, str]],
        vet: Callable[[str], None],
        kept: KeptRefusals,
        max_age_s: float,
        trial_s: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._alias = alias
        self._followed = (alias, CHALLENGER) if has_challenger else (alias,)
        self._fallback = fallback
        self._read_aliases = read_aliases
        self._vet = vet
        self._kept = kept
        self._max_age_s = max_age_s
        self._clock = clock
        self._read_at: float | None = None
        self._served: dict[str, str] = {}
        self._refusals: dict[str, Refusal] = {}
        self._retries: dict[str, _Retry] = {}
        self._rollout = Rollout(trial_s)

    def wanted(
        self, serving: str | None, replica: str | None = None, is_healthy: bool = True
    ) -> Wanted:
        """Return the versions that a replica should serve.

        Args:
            serving: Version of the replica's champion; None: it has just started. A watch that
                replaces a lost one starts from this version.
            replica: Id of the replica; None: it takes no part in trials.
            is_healthy: Whether the replica passes its health checks with that version.
        """
        is_new = serving is not None and self._alias not in self._served
        # Not a version that the watch before this one refused: the replica may serve it still.
        if serving is not None and is_new and self._kept.reason(serving) is None:
            self._served[self._alias] = serving
        now = self._clock()
        if self._read_at is None or now - self._read_at >= self._max_age_s:
            self._read_at = now
            self._read()
        champion = self._served.get(self._alias, self._fallback)
        outcome = self._rollout.hear(replica, serving, is_healthy, champion, now)
        if outcome is not None:
            champion = self._served[self._alias] = outcome.champion
        if outcome is not None and outcome.refused is not None:
            self._kept.add(*outcome.refused)
            self._refuse(self._alias, *outcome.refused)
        return Wanted(
            champion=self._rollout.version_for(replica) or champion,
            challenger=self._served.get(CHALLENGER) if CHALLENGER in self._followed else None,
            refusals=tuple(self._refusals.values()),
        )

    def _read(self) -> None:
        try:
            versions = self._read_aliases()
        except MaskRayError as error:
            logger.warning("the aliases cannot be read; the versions stay: %s", error)
            return
        for alias in self._followed:
            self._move(alias, versions.get(alias))

    def _move(self, alias: str, version: str | None) -> None:
        refusal = self._refusals.get(alias)
        if refusal is not None and refusal.version == version and not self._may_be_again(version):
            return
        self._refusals.pop(alias, None)
        if alias == self._alias and self._rollout.is_trying(version):
            return
        if alias in self._retries and self._retries[alias].version != version:
            del self._retries[alias]
        if version is None:
            # Requests need a champion. They do not need a challenger.
            if alias != self._alias:
                self._served.pop(alias, None)
            return
        known = self._fallback if alias == self._alias else None
        if version == self._served.get(alias, known):
            self._served[alias] = version
            if alias == self._alias:
                self._rollout.cancel()
            return
        self._try(alias, version)

    def _may_be_again(self, version: str) -> bool:
        """Return whether a version failed health checks, and may be tried again since."""
        return self._kept.knows(version) and self._kept.reason(version) is None

    def _try(self, alias: str, version: str) -> None:
        if (reason := self._kept.reason(version)) is not None:
            self._refuse(alias, version, reason)
            return
        retry = self._retries.get(alias, _Retry(version, after=0, wait_s=self._max_age_s))
        if self._clock() < retry.after:
            return
        try:
            self._vet(version)
        except ModelRefusedError as error:
            self._refuse(alias, version, str(error))
        except MaskRayError as error:
            logger.warning("version %s cannot be fetched yet: %s", version, error)
            wait_s = min(2 * retry.wait_s, _MAX_RETRY_S)
            self._retries[alias] = _Retry(version, self._clock() + wait_s, wait_s)
            return
        else:
            if alias != self._alias or not self._rollout.start(version):
                self._served[alias] = version
        self._retries.pop(alias, None)

    def _refuse(self, alias: str, version: str, reason: str) -> None:
        self._refusals[alias] = Refusal(alias, version, reason)
        logger.error("version %s, now %s, is rejected: %s", version, alias, reason)
