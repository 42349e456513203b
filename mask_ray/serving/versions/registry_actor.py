"""The registry as replicas see it: one small actor for an application reads it for all of them.

MLflow takes over 100 MB of memory and seconds to import, so no replica holds it. The actor does,
and reads aliases; files are found, and new versions vetted, by tasks whose processes end with
them, so that a file which crashes its process harms nothing else.
"""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.config import MaskRayError
from mask_ray.models.smoke_test import ModelRefusedError, load_checked
from mask_ray.serving.versions.alias_watch import AliasWatch, Wanted

_NAMESPACE = "mask_ray"
# Loading MLflow, fetching a model and a few predictions take seconds.
_VET_TIMEOUT_S = 120.0
_ASK_TIMEOUT_S = _VET_TIMEOUT_S + 30
# Without replicas that ask, the actor ends: it belongs to no process that would end it.
_MIN_IDLE_S = 60.0


@dataclass(frozen=True)
class Followed:
    """What an application follows.

    Args:
        name: Registered model.
        alias: Its alias.
        pinned: The version that the alias named when the application was built.
        class_names: Those that every version must have; None: any.
        has_challenger: Whether the alias `challenger` is followed too.
        period_s: How old the knowledge of an alias may become.
    """

    name: str
    alias: str
    pinned: str
    class_names: tuple[str, ...] | None
    has_challenger: bool
    period_s: float


class RegistryWatch:
    """The actor of an application, from the side of a replica that asks it.

    It is made by who asks first, and again when it is lost.
    """

    def __init__(self, app_name: str, followed: Followed) -> None:
        digest = hashlib.blake2b(repr(astuple(followed)).encode(), digest_size=6).hexdigest()
        self._name = f"mask_ray:{app_name}:{digest}"
        self._followed = followed
        self._actor: Any = None

    def wanted(self, serving: str | None) -> Wanted:
        """As `AliasWatch.wanted`. Blocks, for as long as a version is being vetted.

        Raises:
            MaskRayError: the actor does not answer; it is made anew the next time.
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
            # Not ray.get, which warns in the async actor that a replica is.
            wanted: Wanted = self._actor.wanted.remote(serving).future().result(_ASK_TIMEOUT_S)
        except (RayActorError, TimeoutError) as error:
            self._actor = None
            raise MaskRayError("the actor that reads the registry does not answer") from error
        return wanted


class _Watch:
    def __init__(self, followed: Followed) -> None:
        self._followed = followed
        self._asked_at = time.monotonic()
        self._versions = AliasWatch(
            followed.alias,
            has_challenger=followed.has_challenger,
            fallback=followed.pinned,
            read_aliases=self._read,
            vet=self._vet,
            # Every replica asks once a period, at a time of its own.
            max_age_s=followed.period_s / 2,
        )
        threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def wanted(self, serving: str | None) -> Wanted:
        wanted = self._versions.wanted(serving)
        self._asked_at = time.monotonic()
        return wanted

    def _read(self) -> Mapping[str, str]:
        # Not imported above: replicas import this module, and do without MLflow.
        from mask_ray import tracking

        return tracking.aliases(self._followed.name)

    def _vet(self, version: str) -> None:
        vet(f"models:/{self._followed.name}/{version}", self._followed.class_names)

    def _end_when_idle(self) -> None:
        longest_s = max(_MIN_IDLE_S, 10 * self._followed.period_s) + _ASK_TIMEOUT_S
        while time.monotonic() - self._asked_at < longest_s:
            time.sleep(min(10, self._followed.period_s))
        ray.kill(ray.get_runtime_context().current_actor)


def vet(uri: str, class_names: tuple[str, ...] | None) -> None:
    """Load a model and have it answer, in a process that ends with it.

    Raises:
        ModelRefusedError: it must not be served; also when its process dies or hangs.
        MaskRayError: the registry does not answer, or there is no such model.
    """
    task = _vet.remote(uri, class_names)
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
def _vet(uri: str, class_names: tuple[str, ...] | None) -> tuple[str, str]:
    from mask_ray import tracking

    try:
        load_checked(tracking.resolve_model(uri).path, class_names=class_names)
    except ModelRefusedError as error:
        return "refused", str(error)
    except Exception as error:
        # The registry's files may fail in any way, and may be back later.
        return "failed", str(error)
    return "admitted", ""


def resolve_here(uri: str) -> tuple[Path, str, str | None]:
    """Path on this node, name and version of a model, found in a process that ends with it.

    Raises:
        tracking.ModelNotFoundError: there is none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    resolved = _resolve.options(scheduling_strategy=here).remote(uri)
    # Not ray.get, which warns in the async actor that a replica is.
    path, name, version = resolved.future().result()
    return Path(path), name, version


@ray.remote(num_cpus=0, max_calls=1)
def _resolve(uri: str) -> tuple[str, str, str | None]:
    from mask_ray import tracking

    resolved = tracking.resolve_model(uri)
    # Plain values: to unpickle a ResolvedModel, the replica would import MLflow after all.
    return str(resolved.path), resolved.name, resolved.version
