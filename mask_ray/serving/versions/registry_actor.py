"""Reads the registry for all replicas of an application, in one small actor.

MLflow takes over 100 MB of memory and seconds to import, so no replica imports it. The actor does:
it reads the aliases and finds the files of versions. New versions are tried in processes of their
own, so a file that crashes its process harms nothing else.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.config import MaskRayError
from mask_ray.models.smoke_test import ModelLimits, ModelRefusedError, load_checked
from mask_ray.serving.versions.alias_watch import AliasWatch, Wanted
from mask_ray.serving.versions.kept_refusals import KeptRefusals
from mask_ray.serving.versions.model_files import ModelFile, find_in_registry
from mask_ray.serving.versions.rollout import RESOLVE_TIMEOUT_S

_NAMESPACE = "mask_ray"
# The start of a process and a few predictions take seconds.
_VET_TIMEOUT_S = 120.0
# An answer may wait for a version that is found and then tried.
_ASK_TIMEOUT_S = RESOLVE_TIMEOUT_S + _VET_TIMEOUT_S + 30
# The actor is detached: no process ends it, so it ends itself when no replica asks.
_MIN_IDLE_S = 60.0


@dataclass(frozen=True)
class Followed:
    """The alias that an application follows.

    Args:
        name: Name of the registered model.
        alias: Alias of the champion.
        pinned: Version that the alias named when the application was built.
        class_names: Class names that every version must have; None: any.
        has_challenger: Whether to follow the alias `challenger` too.
        period_s: How often to check the aliases, in seconds.
        limits: What a version may cost.
        trial_s: How long the first replica serves a version before the others do, in seconds.
    """

    name: str
    alias: str
    pinned: str
    class_names: tuple[str, ...] | None
    has_challenger: bool
    period_s: float
    limits: ModelLimits
    trial_s: float


class RegistryWatch:
    """Handle of an application's actor in a replica.

    The first replica that asks starts the actor; it is started again if it is lost.

    Args:
        app_name: Name of the application.
        followed: Alias that it follows.
        replica: Id of the replica.
        is_healthy: Returns whether the replica passes its health checks with a version.
    """

    def __init__(
        self,
        app_name: str,
        followed: Followed,
        replica: str,
        is_healthy: Callable[[str | None], bool],
    ) -> None:
        self._replica = replica
        self._is_healthy = is_healthy
        digest = hashlib.blake2b(repr(astuple(followed)).encode(), digest_size=6).hexdigest()
        self._name = f"mask_ray:{app_name}:{digest}"
        self._followed = followed
        self._actor: Any = None
        self._files: Mapping[str, ModelFile] = {}

    def wanted(self, serving: str | None) -> Wanted:
        """As `AliasWatch.wanted`. Blocks while a version is being tried.

        Raises:
            MaskRayError: the actor does not answer. The next call starts it again.
        """
        if self._actor is None:
            actor_class: Any = ray.remote(_Watch)
            self._actor = actor_class.options(
                name=self._name,
                namespace=_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
            ).remote(self._followed)
        try:
            # Not ray.get, which logs a warning in an async actor such as a replica.
            asked = self._actor.wanted.remote(serving, self._replica, self._is_healthy(serving))
            wanted: Wanted
            wanted, self._files = asked.future().result(_ASK_TIMEOUT_S)
        except (RayActorError, TimeoutError) as error:
            self._actor = None
            raise MaskRayError("the actor that reads the registry does not answer") from error
        return wanted

    def file_of(self, version: str) -> Path | None:
        """Return the file of a wanted version; None if this machine does not have it there."""
        found = self._files.get(version)
        return found.path if found is not None and found.is_here() else None


class _Watch:
    def __init__(self, followed: Followed) -> None:
        self._followed = followed
        self._asked_at = time.monotonic()
        self._files: dict[str, ModelFile] = {}
        self._versions = AliasWatch(
            followed.alias,
            has_challenger=followed.has_challenger,
            fallback=followed.pinned,
            read_aliases=self._read,
            vet=self._vet,
            kept=KeptRefusals(self._read_refusal, self._keep_refusal),
            # Replicas ask once a period, at different times.
            max_age_s=followed.period_s / 2,
            trial_s=followed.trial_s,
        )
        threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def wanted(
        self, serving: str | None, replica: str, is_healthy: bool
    ) -> tuple[Wanted, dict[str, ModelFile]]:
        wanted = self._versions.wanted(serving, replica, is_healthy)
        self._asked_at = time.monotonic()
        return wanted, self._files_of(wanted)

    def _files_of(self, wanted: Wanted) -> dict[str, ModelFile]:
        """Return the files of the wanted versions, as far as they can be found."""
        versions = [each for each in (wanted.champion, wanted.challenger) if each is not None]
        for version in versions:
            # A replica that gets no file looks for it by itself, and says what is wrong.
            with suppress(MaskRayError):
                if version not in self._files:
                    self._files[version] = self._find(version, prefer_kept=True)
        return {each: self._files[each] for each in versions if each in self._files}

    def _find(self, version: str, *, prefer_kept: bool) -> ModelFile:
        return find_in_registry(f"models:/{self._followed.name}/{version}", prefer_kept=prefer_kept)

    def _read(self) -> Mapping[str, str]:
        # Imported late: replicas import this module, and do not need MLflow.
        from mask_ray import tracking

        tracking.answer_soon()
        return tracking.aliases(self._followed.name)

    def _vet(self, version: str) -> None:
        # Found again, since a model that was deleted and made again has the same numbers.
        self._files[version] = self._find(version, prefer_kept=False)
        vet(self._files[version].path, self._followed.class_names, self._followed.limits)

    def _read_refusal(self, version: str) -> str | None:
        from mask_ray import tracking

        tracking.answer_soon()
        return tracking.refusal(self._followed.name, version)

    def _keep_refusal(self, version: str, reason: str) -> None:
        from mask_ray import tracking

        tracking.answer_soon()
        tracking.keep_refusal(self._followed.name, version, reason)

    def _end_when_idle(self) -> None:
        longest_s = max(_MIN_IDLE_S, 10 * self._followed.period_s) + _ASK_TIMEOUT_S
        while time.monotonic() - self._asked_at < longest_s:
            time.sleep(min(10, self._followed.period_s))
        ray.kill(ray.get_runtime_context().current_actor)


def vet(path: Path, class_names: tuple[str, ...] | None, limits: ModelLimits | None = None) -> None:
    """Load a model and classify a few images, in a process of its own on this node.

    Raises:
        ModelRefusedError: it must not be served, or its process dies or hangs.
        MaskRayError: its file cannot be read.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = _vet.options(scheduling_strategy=here).remote(path, class_names, limits)
    try:
        outcome, message = ray.get(task, timeout=_VET_TIMEOUT_S)
    except WorkerCrashedError:
        raise ModelRefusedError("the process that tried the model died") from None
    except GetTimeoutError:
        ray.cancel(task, force=True)
        raise ModelRefusedError(f"trying the model took over {_VET_TIMEOUT_S:g} s") from None
    if outcome == "refused":
        raise ModelRefusedError(message)
    if outcome == "failed":
        raise MaskRayError(message)


@ray.remote(num_cpus=0, max_calls=1, max_retries=0)
def _vet(
    path: Path, class_names: tuple[str, ...] | None, limits: ModelLimits | None
) -> tuple[str, str]:
    try:
        load_checked(path, class_names=class_names, limits=limits)
    except ModelRefusedError as error:
        return "refused", str(error)
    except Exception as error:  # the file may be gone, or on a disk that fails
        return "failed", str(error)
    return "admitted", ""
