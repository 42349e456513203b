"""Horovod on Ray Train V2 and Keras 3."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import ray.train

from mask_ray.horovod.trainer import HorovodConfig, HorovodTrainer, assign_slots, choose_interface

# Ray's workers cannot import this module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_workers_are_ranked_by_node() -> None:
    slots = assign_slots(["10.0.0.1", "10.0.0.1", "10.0.0.2"])
    assert [(s.rank, s.local_rank, s.cross_rank) for s in slots] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 0, 1),
    ]
    assert [(s.size, s.local_size, s.cross_size) for s in slots] == [
        (3, 2, 2),
        (3, 2, 1),
        (3, 1, 2),
    ]


def test_the_interface_is_the_one_that_holds_the_node_s_address() -> None:
    loopback = choose_interface("127.0.0.1")
    assert "127.0.0.1" in {address.address for address in psutil.net_if_addrs()[loopback]}


def test_a_named_interface_is_taken_where_it_exists() -> None:
    loopback = choose_interface("127.0.0.1")
    assert choose_interface("192.0.2.77", {loopback, "nope0"}) == loopback


@pytest.mark.parametrize(
    ("nics", "message"), [(None, "holds its Ray address 192.0.2.77"), ({"nope0"}, "called nope0")]
)
def test_no_interface_is_an_error_that_names_those_there_are(
    nics: set[str] | None, message: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"{message}; found .*{choose_interface('127.0.0.1')}"):
        choose_interface("192.0.2.77", nics)


def tiny_model() -> Any:
    import keras

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"], jit_compile=False)
    return model


def examples(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(num_rows, 4)).astype("f4"), rng.normal(size=(num_rows, 2)).astype("f4")


def compare_with_one_process() -> None:
    """Every claim about two ranks, checked against the same work done by one."""
    import horovod.tensorflow as hvd
    import keras

    from mask_ray.horovod.keras import (
        average_batch_statistics,
        broadcast_state,
        check_ranks_agree,
        distributed_optimizer,
        global_metrics,
    )

    hvd.init()
    rank = hvd.rank()
    found: dict[str, Any] = {"size": hvd.size()}

    keras.utils.set_random_seed(rank)
    model = tiny_model()
    model.compile(distributed_optimizer(model.optimizer), "mse", metrics=["mae"], jit_compile=False)
    try:
        check_ranks_agree(model)
        found["divergence"] = ""
    except RuntimeError as error:
        found["divergence"] = str(error)
    broadcast_state(model)
    check_ranks_agree(model)

    alone = tiny_model()
    alone.set_weights(model.get_weights())
    x, y = examples(8)
    model.train_on_batch(x[rank::2], y[rank::2])
    check_ranks_agree(model)
    alone.train_on_batch(x, y)
    found["weights_differ_by"] = float(
        max(
            np.abs(a - b).max()
            for a, b in zip(model.get_weights(), alone.get_weights(), strict=True)
        )
    )

    x, y = examples(10)
    mine = slice(0, 7) if rank == 0 else slice(7, 10)
    model.set_weights(alone.get_weights())
    model.evaluate(x[mine], y[mine], batch_size=2, verbose=0)
    averaged = global_metrics(model)
    expected = alone.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
    found["metrics_differ_by"] = max(abs(averaged[name] - expected[name]) for name in expected)

    norm = keras.Sequential([keras.layers.Input((4,)), keras.layers.BatchNormalization()])
    norm.layers[0].moving_mean.assign(np.full(4, float(rank)))
    average_batch_statistics(norm)
    found["moving_mean"] = norm.layers[0].moving_mean.numpy().tolist()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        found["optimizer"] = type(keras.models.load_model(path).optimizer).__module__
    report(found)


def report(metrics: dict[str, Any], files: dict[str, str] | None = None) -> None:
    """From every rank, with a checkpoint from rank 0: Ray Train keeps no metrics without one."""
    import horovod.tensorflow as hvd

    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text)
        saved = ray.train.Checkpoint.from_directory(folder) if hvd.rank() == 0 else None
        ray.train.report(metrics, checkpoint=saved)


def fit(loop: Any, folder: Path, num_workers: int = 2, **kwargs: Any) -> Any:
    return HorovodTrainer(
        loop,
        horovod_config=HorovodConfig(timeout_s=60),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, resources_per_worker={"CPU": 0.5}
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=kwargs.pop("max_failures", 0)),
        ),
        **kwargs,
    ).fit()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
class TestTwoWorkers:
    def test_do_what_one_process_does(self, tmp_path: Path) -> None:
        found = fit(compare_with_one_process, tmp_path).metrics
        assert found["size"] == 2
        assert "the workers' weights differ" in found["divergence"]
        assert found["weights_differ_by"] < 1e-6
        assert found["metrics_differ_by"] < 1e-6
        assert found["moving_mean"] == [0.5] * 4
        assert found["optimizer"].startswith("keras.")

    def test_go_on_from_the_checkpoint_when_one_is_killed(self, tmp_path: Path) -> None:
        result = fit(count_to_four_and_die_once, tmp_path, max_failures=1)
        assert result.metrics == {"count": 4, "restarted_from": 2}


def count_to_four_and_die_once() -> None:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    count = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            count = int(Path(folder, "count").read_text())
    restarted_from = count
    while count < 4:
        # Horovod's own sum over the workers, so that a lost one is noticed.
        count += int(hvd.allreduce(tf.constant(1), op=hvd.Sum)) // hvd.size()
        report({"count": count, "restarted_from": restarted_from}, {"count": str(count)})
        if count == 3 and restarted_from == 0 and hvd.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


ON_V1 = """
import json, sys
import ray, ray.train
from mask_ray.horovod import HorovodTrainer

def loop():
    import horovod.tensorflow as hvd
    hvd.init()
    ray.train.report({"size": hvd.size()})

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
trainer = HorovodTrainer(
    loop,
    scaling_config=ray.train.ScalingConfig(
        num_workers=2, resources_per_worker={"CPU": 0.5}, trainer_resources={"CPU": 0}
    ),
    run_config=ray.train.RunConfig(storage_path=sys.argv[1]),
)
print(json.dumps({"class": type(trainer).__module__, "size": trainer.fit().metrics["size"]}))
"""


@pytest.mark.slow
def test_on_v1_the_name_is_ray_s_own_trainer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_V1, str(tmp_path)],
        env=os.environ | {"RAY_TRAIN_V2_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"class": "ray.train.horovod.horovod_trainer", "size": 2}
