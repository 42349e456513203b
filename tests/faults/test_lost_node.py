"""A node that is lost costs the way back to the checkpoint, and its workers."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

from tests.support import polling
from tests.support.horovod_runs import fit, report, reported_count
from tests.support.ray_cluster import two_nodes

# Ray's workers cannot import these modules: their functions travel by value.
for module in (__name__, fit.__module__, polling.__name__):
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two of one CPU each, so that each has one worker."""
    # How long Ray Train waits for workers that no node has room for.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    with two_nodes() as cluster:
        yield cluster


def count_to_four(config: dict[str, Any]) -> None:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    restarted_from = count = reported_count()
    while count < 4:
        if count == 2 and hvd.size() == 2:
            Path(config["folder"], f"waiting-{hvd.rank()}").touch()
            polling.wait_until(lambda: False, timeout_s=3000)
        count += int(hvd.allreduce(tf.constant(1), op=hvd.Sum)) // hvd.size()
        metrics = {"count": count, "restarted_from": restarted_from, "size": hvd.size()}
        report(metrics, {"count": str(count)})


@pytest.mark.parametrize("is_reserved", [False, True])
def test_the_run_goes_on_with_the_node_that_is_left(
    nodes: Cluster, tmp_path: Path, is_reserved: bool
) -> None:
    def lose_a_node() -> None:
        polling.wait_until(lambda: len(list(tmp_path.glob("waiting-*"))) == 2, "both workers")
        nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)

    loser = threading.Thread(target=lose_a_node)
    loser.start()
    config = {"folder": str(tmp_path)}
    # Bundles that were reserved before the start, with room beside each worker.
    own = {"placement": (placement_group([{"CPU": 1}] * 2), 0)} if is_reserved else {}
    result = fit(
        count_to_four, tmp_path, (1, 2), cpus=0.75, max_failures=3, train_loop_config=config, **own
    )
    loser.join()
    assert result.metrics["count"] == 4
    assert result.metrics["size"] == 1
    assert result.metrics["restarted_from"] in (1, 2), "the last report may be lost"
