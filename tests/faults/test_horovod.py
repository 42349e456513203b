"""Horovod when a worker is lost."""

import os
import signal
import sys
from pathlib import Path

import pytest
import ray
import ray.train

from tests.support import horovod_runs
from tests.support.horovod_runs import fit, report, reported_count

# Ray's workers cannot import this module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
ray.cloudpickle.register_pickle_by_value(horovod_runs)


def count_to_four_and_die_once() -> None:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    restarted_from = count = reported_count()
    while count < 4:
        # Horovod's own sum over the workers, so that a lost one is noticed.
        count += int(hvd.allreduce(tf.constant(1), op=hvd.Sum)) // hvd.size()
        if count == 3 and restarted_from == 0 and hvd.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        report({"count": count, "restarted_from": restarted_from}, {"count": str(count)})
        # Ray Train takes reports over later: a worker that dies before that loses them.
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_the_way_back_to_the_checkpoint(tmp_path: Path) -> None:
    result = fit(count_to_four_and_die_once, tmp_path, max_failures=1)
    assert result.metrics == {"count": 4, "restarted_from": 2}
