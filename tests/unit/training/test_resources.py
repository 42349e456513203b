"""Workers leave Ray Data what it needs to feed them. The cluster is stood in for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray import train

from mask_ray.config import TrainSettings
from mask_ray.training import resources
from mask_ray.training.resources import ClusterError, largest_share, plan_workers


@pytest.mark.parametrize(
    ("free", "num_workers", "share"),
    [
        ([2], 2, 0.5),
        ([2], 1, 1),
        ([16], 4, 3.75),
        ([8, 8], 1, 7),
        ([8, 8], 2, 7),
        ([8, 8], 3, 3.5),
        ([1], 2, 0.25),
        ([0], 1, 0),
        ([], 1, 0),
    ],
)
def test_workers_share_what_fits_on_the_nodes(
    free: list[float], num_workers: int, share: float
) -> None:
    assert largest_share(free, num_workers) == pytest.approx(share)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the cluster nodes of so many CPUs, all of them free."""

    def have(*cpus: float) -> None:
        total = {"CPU": sum(cpus)}
        internals = SimpleNamespace(
            is_train_v2=lambda: True,
            resources_when_grown=lambda: None,
            free_resources_by_node=lambda: [{"CPU": c} for c in cpus],
        )
        alive = [
            {"Alive": True, "Resources": {"CPU": c}, "NodeManagerAddress": f"10.0.0.{n}"}
            for n, c in enumerate(cpus)
        ]
        ray = SimpleNamespace(
            cluster_resources=lambda: total,
            available_resources=lambda: total,
            nodes=lambda: alive,
        )
        monkeypatch.setattr(resources, "ray_internals", internals)
        monkeypatch.setattr(resources, "ray", SimpleNamespace(**vars(ray), train=train))

    return have


def plan(**given: Any) -> resources.Plan:
    return plan_workers(TrainSettings(data="synthetic", **given))


@pytest.mark.parametrize(
    ("cpus", "given", "task_cpus"),
    [
        ([2], {"num_workers": 2}, 1),
        ([16, 2], {"num_workers": 4}, 1),
        ([1], {"num_workers": 1}, 0.5),
        ([16, 1], {"num_workers": 4}, 0.5),
        ([16], {"num_workers": 2, "cpus_per_worker": 7.5}, 0.5),
    ],
)
def test_a_task_takes_a_whole_core_where_every_node_has_one_to_spare(
    nodes: Callable[..., None], cpus: list[float], given: dict[str, Any], task_cpus: float
) -> None:
    nodes(*cpus)
    assert plan(**given).task_cpus == task_cpus


@pytest.mark.parametrize("share", [1, 2])
def test_workers_of_an_elastic_run_may_not_fill_a_node(
    nodes: Callable[..., None], share: float
) -> None:
    nodes(2, 4)
    with pytest.raises(ClusterError, match=r"with min_workers, .* fill the node 10\.0\.0\.0 of 2"):
        plan(num_workers=2, min_workers=1, cpus_per_worker=share)


@pytest.mark.parametrize(
    "given", [{"cpus_per_worker": 1.5, "min_workers": 1}, {"min_workers": 1}, {}], ids=str
)
def test_workers_that_leave_room_are_placed(
    nodes: Callable[..., None], given: dict[str, Any]
) -> None:
    nodes(2, 2)
    scaling: Any = plan(num_workers=2, **given).scaling
    assert scaling.resources_per_worker["CPU"] >= 1


def test_workers_that_would_leave_nothing_are_refused(nodes: Callable[..., None]) -> None:
    nodes(2)
    with pytest.raises(ClusterError, match=r"must leave 0\.5 of the cluster's 2 CPUs for Ray Data"):
        plan(num_workers=2, cpus_per_worker=1)
