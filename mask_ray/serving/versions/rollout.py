"""Rolls a new champion out: to one replica first, then to all, and back if health checks fail.

No Ray and no registry here.
"""

import logging
from dataclasses import dataclass

# How long a replica may take to find a version: some megabytes, from a registry that answers.
RESOLVE_TIMEOUT_S = 90.0
# The first replica counts as lost if its trial has not ended after this many times its length, or
# after one length and the time that finding the version may take, whichever is longer.
_MOST_TRIALS = 3
# A lost replica proves nothing: another tries, after waits that double from two trials to this.
_MAX_WAIT_S = 3600.0
# This many failures in a row are blamed on the version: one may be a busy machine.
_BLAMED_FAILURES = 2
# For this many trials after a switch, failing health checks are blamed on the new version.
_BLAMED_TRIALS = 6

logger = logging.getLogger(__name__)


class FailedChecks:
    """Counts the health checks of a replica that failed in a row with the same version."""

    def __init__(self) -> None:
        self._version: str | None = None
        self._number = 0

    def note(self, version: str | None, has_failed: bool) -> None:
        """Take in a check that was made while the replica served this version."""
        before = self._number if version == self._version else 0
        self._version, self._number = version, before + 1 if has_failed else 0

    def blame(self, version: str | None) -> bool:
        """Return whether the last failures are blamed on this version."""
        return version == self._version and self._number >= _BLAMED_FAILURES


@dataclass
class _Trial:
    version: str
    replica: str | None = None
    given_at: float = 0
    served_since: float | None = None
    num_lost: int = 0
    not_before: float = 0


@dataclass(frozen=True)
class _Switch:
    before: str
    at: float


@dataclass(frozen=True)
class Outcome:
    """The end of a trial or a switch.

    Args:
        champion: Version that all replicas should serve from now on.
        refused: Version that is not served any more, and why; None if it is the champion.
    """

    champion: str
    refused: tuple[str, str] | None = None


class Rollout:
    """State of the champion's last change.

    Args:
        trial_s: How long one replica serves a version before the others do; 0: no trial.
    """

    def __init__(self, trial_s: float) -> None:
        self._trial_s = trial_s
        self._trial: _Trial | None = None
        self._switch: _Switch | None = None
        # When each replica reported last.
        self._heard: dict[str, float] = {}

    def start(self, version: str) -> bool:
        """Start the trial of a version; return False if there are no trials."""
        if not self._trial_s:
            return False
        self._trial, self._switch = _Trial(version), None
        return True

    def is_trying(self, version: str | None) -> bool:
        """Return whether this version is on trial."""
        return self._trial is not None and self._trial.version == version

    def cancel(self) -> None:
        """End a trial without an outcome, because the alias has moved on."""
        self._trial = None

    def version_for(self, replica: str | None) -> str | None:
        """Return the version that this replica tries, or None if it tries none."""
        trial = self._trial
        is_first = trial is not None and replica is not None and trial.replica == replica
        return trial.version if trial is not None and is_first else None

    def hear(
        self, replica: str | None, serving: str | None, is_healthy: bool, champion: str, now: float
    ) -> Outcome | None:
        """Take in what a replica reports; return the outcome if that ends a trial or a switch.

        Args:
            replica: Id of the replica.
            serving: Version that it serves; None: it has just started.
            is_healthy: Whether it passes its health checks with that version.
            champion: Version that the replicas should serve, except the one of the trial.
            now: Seconds of a clock.
        """
        if replica is not None:
            self._heard[replica] = now
        if self._trial is None:
            return self._hear_after_switch(serving, is_healthy, champion, now)
        trial = self._trial
        if trial.replica is None:
            # The first healthy one that runs already, so that one that cannot start is not blamed.
            is_fit = serving is not None and is_healthy and now >= trial.not_before
            if replica is not None and is_fit:
                trial.replica, trial.given_at = replica, now
            return None
        if replica is not None and trial.replica == replica and serving == trial.version:
            if not is_healthy:
                reason = "the first replica with it failed its health check"
                return self._refuse(trial.version, champion, reason)
            trial.served_since = now if trial.served_since is None else trial.served_since
            # A replica that is alone has nothing to wait for.
            if now - trial.served_since >= self._trial_s or self._is_alone(replica, now):
                self._trial, self._switch = None, _Switch(champion, now)
                return Outcome(trial.version)
        elif now - trial.given_at > self._longest_s:
            self._lose(trial, now)
        return None

    @property
    def _longest_s(self) -> float:
        return max(_MOST_TRIALS * self._trial_s, RESOLVE_TIMEOUT_S + self._trial_s)

    def _lose(self, trial: _Trial, now: float) -> None:
        trial.replica, trial.served_since = None, None
        trial.num_lost += 1
        wait_s = min(2**trial.num_lost * self._trial_s, _MAX_WAIT_S)
        trial.not_before = now + wait_s
        logger.warning(
            "the replica that tried version %s was lost or did not load it in %g s; another tries "
            "it in %g s",
            trial.version,
            self._longest_s,
            wait_s,
        )

    def _is_alone(self, replica: str, now: float) -> bool:
        recent = now - _MOST_TRIALS * self._trial_s
        return all(other == replica or at < recent for other, at in self._heard.items())

    def _hear_after_switch(
        self, serving: str | None, is_healthy: bool, champion: str, now: float
    ) -> Outcome | None:
        switch = self._switch
        if switch is None or is_healthy or serving != champion:
            return None
        if now - switch.at > _BLAMED_TRIALS * self._trial_s:
            return None
        return self._refuse(champion, switch.before, "a replica with it failed its health check")

    def _refuse(self, version: str, champion: str, reason: str) -> Outcome:
        self._trial = self._switch = None
        return Outcome(champion, (version, reason))
