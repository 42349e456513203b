"""Every node of a real cluster is watched while a run goes on."""

from collections.abc import Iterator

import mlflow
import pytest
import ray
from ray.cluster_utils import Cluster

from mask_ray import tracking
from mask_ray.config import tracking_uri
from mask_ray.tracking import node_metrics
from tests.support.polling import wait_until
from tests.support.ray_cluster import disconnect


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    disconnect()
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    disconnect()
    cluster.shutdown()


@pytest.mark.starts_ray
def test_metrics_of_each_node_have_its_number(two_nodes: None) -> None:
    wanted = {f"system/node_{number}/cpu_utilization_percentage" for number in (0, 1)}
    with tracking.start_run("watched", {}) as run, node_metrics.record(run):
        mlflow.set_tracking_uri(tracking_uri())

        def metrics() -> dict[str, float]:
            return mlflow.get_run(run.run_id).data.metrics

        wait_until(lambda: wanted <= set(metrics()), lambda: f"{wanted}; found {metrics()}")
    assert all(0 <= metrics()[name] <= 100 for name in wanted)
