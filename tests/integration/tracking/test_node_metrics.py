"""Every node of a real cluster is watched while a run goes on."""

import time
from collections.abc import Iterator

import mlflow
import pytest
import ray
from ray.cluster_utils import Cluster

from mask_ray import tracking
from mask_ray.config import tracking_uri
from mask_ray.tracking import node_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def test_metrics_of_each_node_have_its_number(two_nodes: None) -> None:
    wanted = {f"system/node_{number}/cpu_utilization_percentage" for number in (0, 1)}
    with tracking.start_run("watched", {}) as run, node_metrics.record(run):
        mlflow.set_tracking_uri(tracking_uri())
        deadline = time.monotonic() + 60
        while not wanted <= set(found := mlflow.get_run(run.run_id).data.metrics):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
    assert all(0 <= found[name] <= 100 for name in wanted)
