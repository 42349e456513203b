"""Ray Train's controller with workers in bundles that are reserved already."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mask_ray.ray_internals import resources_when_grown

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


def start_controller(
    group: "PlacementGroup | None", first_bundle: int, arguments: dict[str, Any]
) -> Any:
    """Start Ray Train's controller, on this node; return the actor.

    As `DataParallelTrainer._initialize_and_run_controller` of `ray.train.v2` does, but its workers
    run in bundles that are reserved already.

    Args:
        group: Placement group with the bundles; None to reserve them when the workers start.
        first_bundle: Index of the first worker's bundle.
        arguments: Arguments of the controller.
    """
    import ray
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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


def _controller(group: Any, first_bundle: int, variables: Mapping[str, str]) -> type:
    """Return a controller whose workers run in the bundles of a group, which it does not remove.

    It sets the variables in its process. All that it starts would inherit a runtime environment,
    and could use no process that has run a task of the driver.

    Subclasses of `TrainController`, `WorkerGroup` and `DefaultPlacementGroupHandle`. When a node is
    lost, Ray moves its bundles to another node once there is room; until then workers run in those
    that are left.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
        DefaultPlacementGroupHandle,
    )
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    class Held(DefaultPlacementGroupHandle):
        def __init__(self, num_workers: int, last_bundle: int) -> None:
            super().__init__(group)
            self._num_workers, self._last_bundle = num_workers, last_bundle

        def bundles(self) -> list[int]:
            """Return the bundles that are on a node, of those for these workers."""
            return placed_bundles(group, range(first_bundle, self._last_bundle + 1))

        def wait(self, timeout_seconds: float = 30) -> bool:
            deadline = time.monotonic() + timeout_seconds
            while len(self.bundles()) < self._num_workers:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.5)
            return True

        def shutdown(self) -> None:
            """Keep the group for the next start of the workers."""

    class PlacedWorkers(WorkerGroup):
        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
            last_bundle = first_bundle + scaling_config.max_workers - 1
            self._held = Held(worker_group_context.num_workers, last_bundle)
            return self._held

        def _create_workers(self, num_workers: int, *arguments: Any, **options: Any) -> Any:
            bundles = self._held.bundles()[:num_workers]
            options["placement_group_bundle_indices"] = bundles
            return super()._create_workers(num_workers, *arguments, **options)

    class Controller(TrainController):
        worker_group_cls = WorkerGroup if group is None else PlacedWorkers

        def __init__(self, *arguments: Any, **options: Any) -> None:
            os.environ.update(variables)
            super().__init__(*arguments, **options)

    return Controller


def placed_bundles(group: "PlacementGroup", wanted: range) -> list[int]:
    """Return those of the wanted bundles that are on a node that lives."""
    import ray
    from ray.util.placement_group import placement_group_table

    nodes = placement_group_table(group).get("bundles_to_node_id", {})
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [bundle for bundle in wanted if nodes.get(bundle) in alive]
