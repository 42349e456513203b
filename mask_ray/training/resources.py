"""Plan a run's share of the Ray cluster, and reserve it before anything starts.

Each worker gets a bundle of CPUs on one node, with room for the tasks of Ray Data that feed it. All
bundles are one placement group: Ray gives either all of them or none, so no two runs can each hold
a part of what both need.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from mask_ray import data, ray_internals
from mask_ray.config import MaskRayError, TrainSettings
from mask_ray.progress import say

# A run that has just ended gives its CPUs back within seconds, on a busy machine too.
_WAIT_S = 15
_POLL_S = 0.25
# Nodes of a cluster that grows on demand may take long to start.
_GROW_S = 30 * 60
_SAY_EVERY_S = 60

_HELD = (
    "Other jobs or the replicas of a service hold the others: wait for the jobs, or stop them "
    "(`ray job list`, `ray job stop ID`); a service holds fewer with a lower max_replicas"
)


class ClusterError(MaskRayError):
    """The cluster cannot hold the run; the message says what it has and what was requested."""


@dataclass(frozen=True)
class Plan:
    """The resources that a run uses.

    Args:
        scaling: Number and resources of the Horovod workers.
        bundle: Resources to reserve for each worker: its own, and CPUs for the tasks that feed it.
        num_bundles: Number of bundles: the workers of all trials that run at a time.
        task_cpus: CPUs that each task of Ray Data reserves.
        group: The reserved bundles; None before they are, and on Ray Train V1.
        first_bundle: Index of the bundle of the first worker.
    """

    scaling: ray.train.ScalingConfig
    bundle: dict[str, float]
    num_bundles: int
    task_cpus: float
    group: PlacementGroup | None = None
    first_bundle: int = 0

    @property
    def num_cpus(self) -> float:
        """CPUs to compute features on before the workers start: whole ones, or a part of one."""
        cpus = self.bundle["CPU"]
        return self.num_bundles * int(cpus) if cpus >= 1 else cpus


def plan_workers(settings: TrainSettings, num_trials: int = 1) -> Plan:
    """Choose the workers' number and resources, and leave Ray Data enough CPUs to feed them.

    Args:
        settings: Settings of the run, or of each trial.
        num_trials: Trials that run at a time.

    Raises:
        ClusterError: the cluster cannot hold that many workers.
    """
    num_bundles = settings.num_workers * num_trials
    _check_size(settings, num_bundles)
    try:
        free, cpus, room = _find_room(settings, num_bundles)
    except ClusterError as error:
        if num_trials == 1:
            raise
        raise ClusterError(
            f"--max-concurrent is too large: {num_trials} trials at a time do not fit. {error}"
        ) from error
    task_cpus = min(1, room - cpus)
    if settings.cpus_per_worker is not None:
        # Ray Data starts a task for each CPU that the workers leave free, but this run has reserved
        # only some of those CPUs: smaller tasks fit into them.
        task_cpus = min(task_cpus, (room - cpus) * num_bundles / (sum(free) - cpus * num_bundles))
    gpu = {"GPU": 1.0} if settings.use_gpu else {}
    return Plan(
        _scaling(settings, {"CPU": cpus} | gpu),
        {"CPU": room} | gpu,
        num_bundles,
        max(0.01, math.floor(task_cpus * 100) / 100),
    )


def _find_room(settings: TrainSettings, num_bundles: int) -> tuple[list[float], float, float]:
    """Return the free CPUs of each node, those of a worker, and those of its bundle.

    CPUs of a run that has just ended may not be free yet: they are waited for.

    Raises:
        ClusterError: other work holds too many CPUs.
    """
    grown = ray_internals.resources_when_grown()
    given = settings.cpus_per_worker or (1 if grown else None)
    deadline = time.monotonic() + _WAIT_S
    while True:
        nodes = ray_internals.free_resources_by_node()
        free = [n.get("CPU", 0) for n in nodes if n.get("GPU", 0) >= 1 or not settings.use_gpu]
        if grown:
            # Nodes will be added whose sizes are not known: count the largest cluster as one node.
            free = [grown["CPU"]]
        try:
            return free, *_shares(given, num_bundles, free)
        except ClusterError:
            is_all_free = sum(free) >= ray.cluster_resources().get("CPU", 0)
            if grown or is_all_free or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def _scaling(settings: TrainSettings, each: dict[str, float]) -> ray.train.ScalingConfig:
    num_workers: Any = settings.num_workers
    if settings.min_workers not in (None, settings.num_workers):
        num_workers = (settings.min_workers, settings.num_workers)
    # V1 would reserve a CPU for itself; V2 rejects the argument.
    v1_only: Any = {} if ray_internals.is_train_v2() else {"trainer_resources": {"CPU": 0}}
    return ray.train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=settings.use_gpu,
        resources_per_worker=each,
        **v1_only,
    )


def _check_size(settings: TrainSettings, num_bundles: int) -> None:
    """Reject what the cluster could not hold even if nothing else ran.

    Raises:
        ClusterError: there are too few CPUs or GPUs.
    """
    most = ray_internals.resources_when_grown() or ray.cluster_resources()
    resource = "GPU" if settings.use_gpu else "CPU"
    if num_bundles > most.get(resource, 0):
        raise ClusterError(
            f"--num-workers must be at most the cluster's {resource}s "
            f"({most.get(resource, 0):g}); got {num_bundles}"
        )
    cpus = settings.cpus_per_worker
    if cpus is not None and most["CPU"] - cpus * num_bundles < data.LEAST_TASK_CPUS:
        raise ClusterError(
            f"--cpus-per-worker times --num-workers must leave {data.LEAST_TASK_CPUS} of the "
            f"cluster's {most['CPU']:g} CPUs for Ray Data; got {cpus:g} times {num_bundles}"
        )


def _shares(given: float | None, num_bundles: int, free: list[float]) -> tuple[float, float]:
    """Return the CPUs of each worker, whole ones if possible, and of its bundle.

    Args:
        given: CPUs of each worker; None for an equal share.
        num_bundles: Number of bundles to place.
        free: Free CPUs of each node.

    Raises:
        ClusterError: other work holds too many CPUs.
    """
    room = math.floor(largest_share(free, num_bundles) * 100) / 100
    if given is None:
        cpus = math.floor(room - 1) if room >= 2 else math.floor(room * 50) / 100
        is_held = cpus == 0
    else:
        cpus, room = given, min(room, given + 1)
        is_held = (room - cpus) * num_bundles < data.LEAST_TASK_CPUS - 1e-9
    if is_held:
        each = "" if given is None else f" of {given:g}"
        raise ClusterError(
            f"the cluster has {sum(free):g} free CPUs, too few for {num_bundles} workers{each} "
            f"and the tasks that feed each on its node. {_HELD}"
        )
    return cpus, room


def largest_share(free: list[float], num_bundles: int) -> float:
    """Return the most CPUs that each bundle can have, with no bundle spread over two nodes.

    Args:
        free: Free CPUs of each node.
        num_bundles: Number of bundles to place.
    """
    shares = {cpus / count for cpus in free for count in range(1, num_bundles + 1) if cpus > 0}
    for share in sorted(shares, reverse=True):
        if sum(math.floor(cpus / share + 1e-9) for cpus in free) >= num_bundles:
            return share
    return 0.0


@contextmanager
def reserved(plan: Plan) -> Iterator[Plan]:
    """Hold all bundles of a plan, and run Ray Data's tasks in them; yield the plan with its group.

    On Ray Train V1, which reserves what it needs by itself, nothing is held.

    Raises:
        ClusterError: the cluster does not have them free.
    """
    if not ray_internals.is_train_v2():
        yield plan
        return
    group = placement_group([plan.bundle] * plan.num_bundles, strategy="PACK")
    try:
        _wait_for(group, plan)
        with ray_internals.data_tasks_in(group):
            yield replace(plan, group=group)
    finally:
        remove_placement_group(group)


def _wait_for(group: PlacementGroup, plan: Plan) -> None:
    cpus = plan.bundle["CPU"]
    needed = f"{plan.num_bundles} x {cpus:g}" if plan.num_bundles > 1 else f"{cpus:g}"
    wait_s = _GROW_S if ray_internals.resources_when_grown() else _WAIT_S
    deadline = time.monotonic() + wait_s
    while not group.wait(min(_SAY_EVERY_S, wait_s)):
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"this run needs {needed} CPUs at once, and the cluster has "
                f"{ray_internals.cpus_in_words()}. {_HELD}"
            )
        say(f"waiting for {needed} CPUs: the cluster has {ray_internals.cpus_in_words()}")
