"""Ray Train's trainer and its controller, with workers in bundles that are reserved already."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.train import Result
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.ray_internals import failure_policy, resources_when_grown

# A placement group, and the index of its bundle for the first worker.
Placement = tuple[PlacementGroup, int]

_LOOK_EVERY_S = 2.0


class ReservedTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers run in bundles that are reserved already.

    Overrides `_initialize_and_run_controller`, which `fit` calls: no public method takes a place
    for the workers, or does anything while they run.

    Args:
        placement: Placement group with the bundles, and the index of the first worker's; None to
            reserve them when the workers start.
        while_running: Called every few seconds; an error that it raises ends the run.
        is_final: Whether a training error is one that no restart mends.
        arguments: Those of `DataParallelTrainer`.
    """

    def __init__(
        self,
        *,
        placement: Placement | None,
        while_running: Callable[[], None],
        is_final: Callable[[Exception], bool],
        **arguments: Any,
    ) -> None:
        self._placement = placement
        self._while_running = while_running
        self._is_final = is_final
        super().__init__(**arguments)

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        assert self.run_config.failure_config is not None, "RunConfig fills it in"
        policy = failure_policy(self.run_config.failure_config, self._is_final)
        group, first = self._placement or (None, 0)
        controller = _start_controller(group, first, arguments | {"failure_policy": policy})
        running = controller.run.remote()
        try:
            while not ray.wait([running], timeout=_LOOK_EVERY_S)[0]:
                self._while_running()
        except BaseException:
            # The controller ends itself when it aborts, which Ray reports as an error.
            with suppress(ray.exceptions.RayActorError):
                ray.get(controller.abort.remote())
            raise
        ray.get(running)
        result: Result = ray.get(controller.get_result.remote())
        return result


def _start_controller(
    group: PlacementGroup | None, first_bundle: int, arguments: dict[str, Any]
) -> Any:
    """Start Ray Train's controller, on this node; return the actor.

    Args:
        group: Placement group with the bundles; None to reserve them when the workers start.
        first_bundle: Index of the first worker's bundle.
        arguments: Arguments of the controller.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    if group is not None:
        # It would remove the group when a trial is stopped, and end the trials beside it.
        arguments = arguments | {
            "callbacks": [
                callback
                for callback in arguments["callbacks"]
                if not isinstance(callback, PlacementGroupCleanerCallback)
            ]
        }
    here = ray.get_runtime_context().get_node_id()
    # The controller waits in an async method, which Ray would warn of.
    variables = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
    if len(ray.nodes()) == 1 and not resources_when_grown():
        # The only node is never drained for another: a process less.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    variables |= get_env_vars_to_propagate()
    return (
        ray.remote(_controller(group, first_bundle, variables))
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(**arguments)
    )


def _controller(
    group: PlacementGroup | None, first_bundle: int, variables: Mapping[str, str]
) -> type:
    """Return a `TrainController` whose workers run in the bundles of a group, if there is one.

    It sets the variables in its own process. In a runtime environment, all that it starts would
    inherit them, and Ray could not start that in processes that have run the driver's tasks.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    class Controller(TrainController):
        worker_group_cls = WorkerGroup if group is None else _workers_in(group, first_bundle)

        def __init__(self, *arguments: Any, **options: Any) -> None:
            os.environ.update(variables)
            super().__init__(*arguments, **options)

    return Controller


def _workers_in(group: PlacementGroup, first_bundle: int) -> Any:
    """Return a `WorkerGroup` that runs in the bundles of a group, which it does not remove.

    When a node is lost, Ray moves its bundles to another node once there is room; until then
    workers run in those that are left.
    """
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
        DefaultPlacementGroupHandle,
    )
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    class Held(DefaultPlacementGroupHandle):
        def __init__(self, wanted: range, num_workers: int) -> None:
            super().__init__(group)
            self._wanted, self._num_workers = wanted, num_workers

        def wait(self, timeout_seconds: float = 30) -> bool:
            deadline = time.monotonic() + timeout_seconds
            while len(placed_bundles(group, self._wanted)) < self._num_workers:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.5)
            return True

        def shutdown(self) -> None:
            """Keep the group for the next start of the workers."""

    class PlacedWorkers(WorkerGroup):
        def _wanted_bundles(self) -> range:
            scaling_config = self._train_run_context.scaling_config
            return range(first_bundle, first_bundle + scaling_config.max_workers)

        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
            return Held(self._wanted_bundles(), worker_group_context.num_workers)

        def _create_workers(self, num_workers: int, *arguments: Any, **options: Any) -> Any:
            bundles = placed_bundles(group, self._wanted_bundles())[:num_workers]
            options["placement_group_bundle_indices"] = bundles
            return super()._create_workers(num_workers, *arguments, **options)

    return PlacedWorkers


def placed_bundles(group: PlacementGroup, wanted: range) -> list[int]:
    """Return those of the wanted bundles that are on a node that lives."""
    nodes = placement_group_table(group).get("bundles_to_node_id", {})
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [bundle for bundle in wanted if nodes.get(bundle) in alive]
