"""Rays that tests share: one a session for integration, one a module for faults."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NUM_CPUS = 2
OBJECT_STORE_BYTES = 300 * 2**20
NODE_START_TIMEOUT_S = 300


@contextmanager
def own_ray(home: Path) -> Iterator[dict[str, str]]:
    """A Ray that ends with this block, and has this process as a driver.

    Yields the environment of a command that uses it.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        disconnect()
        ray.init(
            address="local",
            num_cpus=NUM_CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
        address = ray.get_runtime_context().gcs_address
        try:
            yield os.environ | {"RAY_ADDRESS": address}
        finally:
            ray.shutdown()


def connect(address: str, environment: Mapping[str, str]) -> None:
    """Make this process a driver of a Ray that runs, unless it is one with the same environment.

    A driver that stays finds its worker processes warm; each new one costs seconds of imports.

    Args:
        address: Of the Ray.
        environment: Variables of the processes that work for this driver, beside Ray's own.
    """
    import ray

    wanted = {"env_vars": dict(environment)} if environment else {}
    if ray.is_initialized():
        if dict(ray.get_runtime_context().runtime_env) == wanted:
            return
        ray.shutdown()
    ray.init(address, runtime_env=wanted or None, log_to_driver=False)


def disconnect() -> None:
    """End what this process is a driver of, if anything."""
    import ray

    ray.shutdown()


@contextmanager
def two_nodes() -> Iterator["Cluster"]:
    """A Ray of two nodes of one CPU each, with this process as a driver on the first."""
    import ray
    from ray.cluster_utils import Cluster

    # Ray would wait half a minute for a node that starts.
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "wait": False}
    disconnect()
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.wait_for_nodes(timeout=NODE_START_TIMEOUT_S)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.add_node(**node)
        cluster.wait_for_nodes(timeout=NODE_START_TIMEOUT_S)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
