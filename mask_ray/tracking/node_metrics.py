"""Record each node's CPU, memory, disk, network and GPUs in MLflow while a run is active."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray import tracking
from mask_ray.config import tracking_uri


@contextmanager
def record(run: tracking.Run) -> Iterator[None]:
    """Record all current nodes, as `system/node_0/cpu_utilization_percentage` and so on.

    Nodes are numbered as in the run's environment.json. This process watches the driver's node; a
    small actor watches each other node.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    watchers = []
    with ExitStack() as stack:
        for number, node_id in enumerate(nodes):
            if node_id == here:
                stack.enter_context(tracking.system_metrics(run.run_id, f"node_{number}"))
            else:
                watchers.append(_start_watcher(run.run_id, number, node_id))
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.stop.remote()


def _start_watcher(run_id: str, number: int, node_id: str) -> Any:
    """Start an actor on the node. It ends with this process, or with its node."""
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": on_node}
    # Not by the runtime environment, which Ray shows and logs.
    remote = ray.remote(_Watcher).options(**options)
    return remote.remote(run_id, f"node_{number}", tracking_uri().full)


class _Watcher:
    def __init__(self, run_id: str, node: str, store: str) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = store
        self._stack = ExitStack()
        self._stack.enter_context(tracking.system_metrics(run_id, node))

    def stop(self) -> None:
        """Stop, and write what was not written yet."""
        self._stack.close()
