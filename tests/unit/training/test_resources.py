"""A run reserves its workers and what feeds them. The cluster is stood in for."""

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
        ([2], 2, 1),
        ([2], 1, 2),
        ([16], 4, 4),
        ([8, 8], 1, 8),
        ([8, 8], 2, 8),
        ([8, 8], 3, 4),
        ([1], 2, 0.5),
        ([0], 1, 0),
        ([], 1, 0),
    ],
)
def test_bundles_share_what_fits_on_the_nodes(
    free: list[float], num_workers: int, share: float
) -> None:
    assert largest_share(free, num_workers) == pytest.approx(share)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the cluster nodes of so many CPUs, all of them free unless said otherwise."""

    def have(*cpus: float, free: tuple[float, ...] | None = None) -> None:
        total = {"CPU": sum(cpus)}
        internals = SimpleNamespace(
            is_train_v2=lambda: True,
            resources_when_grown=lambda: None,
            free_resources_by_node=lambda: [{"CPU": c} for c in free or cpus],
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
    ("cpus", "given", "worker", "bundle", "task_cpus"),
    [
        ([2], {"num_workers": 1}, 1, 2, 1),
        ([2], {"num_workers": 2}, 0.5, 1, 0.5),
        ([16, 2], {"num_workers": 4}, 3, 4, 1),
        ([1], {"num_workers": 1}, 0.5, 1, 0.5),
        ([16], {"num_workers": 2, "cpus_per_worker": 7.5}, 7.5, 8, 0.5),
        # Twelve tasks may run where nothing else does; two CPUs are reserved for them.
        ([16], {"num_workers": 2, "cpus_per_worker": 2}, 2, 3, 0.16),
    ],
)
def test_a_bundle_has_room_for_a_worker_and_for_tasks_that_feed_it(
    nodes: Callable[..., None],
    cpus: list[float],
    given: dict[str, Any],
    worker: float,
    bundle: float,
    task_cpus: float,
) -> None:
    nodes(*cpus)
    made = plan(**given)
    assert made.scaling.resources_per_worker == {"CPU": worker}
    assert made.bundle == {"CPU": bundle}
    assert made.num_bundles == given["num_workers"]
    assert made.task_cpus == task_cpus
    assert made.task_cpus <= bundle - worker


def test_a_worker_may_not_fill_its_node(nodes: Callable[..., None]) -> None:
    nodes(2, 4)
    assert plan(num_workers=2, cpus_per_worker=1, min_workers=1).bundle == {"CPU": 2}
    with pytest.raises(ClusterError, match="2 workers of 2 and the tasks that feed each on its"):
        plan(num_workers=2, cpus_per_worker=2)


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


def test_a_run_is_refused_where_other_work_holds_every_cpu(
    nodes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_WAIT_S", 0)
    nodes(2, free=(0,))
    with pytest.raises(
        ClusterError, match=r"has 0 free CPUs, too few for 1 workers .*a lower max_replicas"
    ):
        plan(num_workers=1)


def test_a_run_waits_for_the_cpus_of_one_that_has_just_ended(
    nodes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes(2, free=(0,))
    monkeypatch.setattr("time.sleep", lambda s: nodes(2))
    assert plan(num_workers=1).bundle == {"CPU": 2}


def test_a_cluster_that_is_too_small_is_not_waited_for(
    nodes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes(2, 1)
    monkeypatch.setattr("time.sleep", lambda s: pytest.fail("it waits"))
    with pytest.raises(ClusterError, match="the tasks that feed each on its"):
        plan(num_workers=2, cpus_per_worker=1, min_workers=1)


def test_trials_at_a_time_have_a_bundle_for_each_of_their_workers(
    nodes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_WAIT_S", 0)
    nodes(8)
    made = plan_workers(TrainSettings(data="synthetic", num_workers=2), num_trials=2)
    assert (made.num_bundles, made.scaling.num_workers, made.bundle) == (4, 2, {"CPU": 2})
    nodes(16, free=(0,))
    with pytest.raises(ClusterError, match="--max-concurrent is too large: 9 trials"):
        plan_workers(TrainSettings(data="synthetic"), num_trials=9)
