"""What a run needs is reserved at once, and its tasks run in what is reserved."""

import os
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray
from ray.util.placement_group import get_current_placement_group

from mask_ray import data, ray_internals
from mask_ray.config import TrainSettings
from mask_ray.training import resources
from mask_ray.training.resources import ClusterError, plan_workers, reserved


@pytest.fixture
def plan(ray_local: None) -> resources.Plan:
    """A plan that takes every CPU."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "an earlier test holds CPUs"
        time.sleep(0.2)
    return plan_workers(TrainSettings(data="synthetic"))


def test_of_two_runs_that_both_found_room_one_is_refused(
    plan: resources.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reserved(plan), monkeypatch.context() as patch:
        patch.setattr(resources, "_WAIT_S", 1)
        with (
            pytest.raises(
                ClusterError, match="Other jobs or the replicas of a service hold the others"
            ),
            reserved(plan),
        ):
            pass
    with reserved(plan) as held:
        assert held.group is not None


def test_what_is_reserved_is_given_back_after_an_error(
    plan: resources.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError), reserved(plan):
        raise RuntimeError
    with reserved(plan):
        pass


def where(batch: data.Batch) -> data.Batch:
    group = get_current_placement_group()
    batch["group"] = np.full(len(batch["id"]), group.id.hex() if group else "")
    batch["pid"] = np.full(len(batch["id"]), os.getpid())
    return batch


def run_tasks(task_cpus: float) -> pd.DataFrame:
    blocks = [pa.table({"id": [number]}) for number in range(4)]
    return data.map_rows(ray.data.from_blocks(blocks), where, task_cpus).to_pandas()


def groups_of_tasks(task_cpus: float) -> set[str]:
    return set(run_tasks(task_cpus)["group"])


def test_tasks_of_a_run_need_nothing_beside_what_is_reserved(plan: resources.Plan) -> None:
    with reserved(plan) as held:
        group: Any = held.group
        assert ray_internals.free_resources_by_node()[0].get("CPU", 0) == 0
        assert groups_of_tasks(held.task_cpus) == {group.id.hex()}
        # As in evaluations that follow the training.
        assert data.spare_cpus() == 0
        assert groups_of_tasks(data.spare_cpus()) == {group.id.hex()}
    assert groups_of_tasks(data.spare_cpus()) == {""}


def test_processes_stay_for_a_run_s_later_tasks(plan: resources.Plan) -> None:
    with reserved(plan) as held:
        before = set(run_tasks(held.task_cpus)["pid"])
        # Ray's own limit ends them after a second.
        time.sleep(5)
        assert before & set(run_tasks(held.task_cpus)["pid"])


def test_other_jobs_read_while_a_run_holds_every_cpu(plan: resources.Plan) -> None:
    group = ray.util.placement_group([plan.bundle] * plan.num_bundles)
    try:
        assert group.wait(30)
        assert data.spare_cpus() == 0
        assert groups_of_tasks(data.spare_cpus()) == {""}
    finally:
        ray.util.remove_placement_group(group)
