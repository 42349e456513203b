"""Plan a run's share of the Ray cluster: its workers, and the CPUs that feed them."""

import math
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from mask_ray import data, ray_internals
from mask_ray.config import MaskRayError, TrainSettings


class ClusterError(MaskRayError):
    """The cluster cannot hold the run; the message says what it has and what was requested."""


@dataclass(frozen=True)
class Plan:
    """The resources that a run uses.

    Args:
        scaling: Number and resources of the Horovod workers.
        num_cpus: CPUs for computing features, before the workers start.
        task_cpus: CPUs that each task of Ray Data reserves, beside the workers.
    """

    scaling: ray.train.ScalingConfig
    num_cpus: float
    task_cpus: float


def plan_workers(settings: TrainSettings) -> Plan:
    """Choose the workers' number and resources, and leave Ray Data enough CPUs to feed them.

    Raises:
        ClusterError: the cluster cannot hold that many workers.
    """
    most = ray_internals.resources_when_grown() or ray.cluster_resources()
    resource = "GPU" if settings.use_gpu else "CPU"
    if settings.num_workers > most.get(resource, 0):
        raise ClusterError(
            f"num_workers must be at most the cluster's {resource}s "
            f"({most.get(resource, 0):g}); got {settings.num_workers}"
        )
    cpus = settings.cpus_per_worker or _cpus_per_worker(settings)
    if most["CPU"] - cpus * settings.num_workers < data.LEAST_TASK_CPUS:
        raise ClusterError(
            f"cpus_per_worker times num_workers must leave {data.LEAST_TASK_CPUS} of the "
            f"cluster's {most['CPU']:g} CPUs for Ray Data; got {cpus:g} times "
            f"{settings.num_workers}"
        )
    num_workers: Any = settings.num_workers
    if settings.min_workers not in (None, settings.num_workers):
        _check_room_on_every_node(settings)
        num_workers = (settings.min_workers, settings.num_workers)
    # V1 would reserve a CPU for itself; V2 rejects the argument.
    v1_only: Any = {} if ray_internals.is_train_v2() else {"trainer_resources": {"CPU": 0}}
    scaling = ray.train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=settings.use_gpu,
        resources_per_worker={"CPU": cpus} | ({"GPU": 1} if settings.use_gpu else {}),
        **v1_only,
    )
    return Plan(scaling, ray.available_resources().get("CPU", 0), _task_cpus(settings))


def _check_room_on_every_node(settings: TrainSettings) -> None:
    """Reject workers that would fill a node, which may become the only one of an elastic run.

    Without a task to feed them they would wait without end.

    Raises:
        ClusterError: the workers of some node would leave no CPU for Ray Data.
    """
    share = settings.cpus_per_worker
    if share is None:  # `largest_share` leaves room
        return
    for node in ray.nodes():
        cpus = node["Resources"].get("CPU", 0) if node["Alive"] else 0
        placed = min(settings.num_workers, math.floor(cpus / share))
        if placed and cpus - placed * share < data.LEAST_TASK_CPUS:
            raise ClusterError(
                f"with min_workers, cpus_per_worker must leave {data.LEAST_TASK_CPUS} CPUs of "
                f"every node for Ray Data; got {share:g}, and {placed} workers of that fill the "
                f"node {node['NodeManagerAddress']} of {cpus:g} CPUs"
            )


def _task_cpus(settings: TrainSettings) -> float:
    """Return the CPUs of a task: 1 if `largest_share` leaves a core on every node."""
    free = [n.get("CPU", 0) for n in ray_internals.free_resources_by_node()]
    return 1 if settings.cpus_per_worker is None and min(free) >= 2 else data.LEAST_TASK_CPUS


def _cpus_per_worker(settings: TrainSettings) -> float:
    """Return an equal share of the free CPUs, without one for Ray Data; whole CPUs if possible.

    Raises:
        ClusterError: other work holds nearly every CPU.
    """
    if ray_internals.resources_when_grown():
        return 1  # the cluster grows on demand, so what is free now says little
    nodes = ray_internals.free_resources_by_node()
    free = [n.get("CPU", 0) for n in nodes if n.get("GPU", 0) >= 1 or not settings.use_gpu]
    share = largest_share(free, settings.num_workers)
    if share < 0.01:
        raise ClusterError(
            f"the cluster has {sum(free):g} free CPUs, too few for {settings.num_workers} workers "
            "and Ray Data; wait for other jobs, or stop them"
        )
    return math.floor(share) if share >= 1 else math.floor(share * 100) / 100


def largest_share(free: list[float], num_workers: int) -> float:
    """Return the most CPUs that each worker can have, with no worker spread over two nodes.

    Args:
        free: Free CPUs of each node. Ray Data keeps one of them, or half if there are fewer
            than two, on every node, since any node may become the last one.
        num_workers: Number of workers to place.
    """
    free = [cpus - min(1, cpus / 2) for cpus in free]
    shares = {cpus / count for cpus in free for count in range(1, num_workers + 1) if cpus > 0}
    for share in sorted(shares, reverse=True):
        if sum(math.floor(cpus / share + 1e-9) for cpus in free) >= num_workers:
            return share
    return 0.0
