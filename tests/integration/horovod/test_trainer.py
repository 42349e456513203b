"""Horovod on Ray Train V2 and Keras 3."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import ray.train

from mask_ray.config import MaskRayError
from tests.support import horovod_runs, polling
from tests.support.horovod_runs import fit, report
from tests.support.interrupts import accepting_sigint

# Ray's workers cannot import this module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
ray.cloudpickle.register_pickle_by_value(horovod_runs)
ray.cloudpickle.register_pickle_by_value(polling)


def tiny_model(optimizer: Any = None) -> Any:
    import keras

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer or keras.optimizers.SGD(0.5), "mse", metrics=["mae"], jit_compile=False)
    return model


def examples(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(num_rows, 4)).astype("f4"), rng.normal(size=(num_rows, 2)).astype("f4")


def distributed(optimizer: Any, *compression: Any) -> Any:
    """A model that is trained by all ranks, the same on each of them."""
    from mask_ray.horovod.keras import broadcast_state, distributed_optimizer

    model = tiny_model(distributed_optimizer(optimizer, *compression))
    broadcast_state(model)
    return model


def copy_of(model: Any, optimizer: Any) -> Any:
    """The same model for one process."""
    copy = tiny_model(optimizer)
    copy.set_weights(model.get_weights())
    return copy


def difference(model: Any, other: Any) -> float:
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return float(max(np.abs(a - b).max() for a, b in pairs))


def disagreement(model: Any) -> str:
    """What is said of the ranks' weights."""
    from mask_ray.horovod.keras import check_ranks_agree

    try:
        check_ranks_agree(model)
    except RuntimeError as error:
        return str(error)
    return ""


def weights_before_and_after_the_broadcast(rank: int) -> tuple[str, str]:
    import keras

    from mask_ray.horovod.keras import broadcast_state

    keras.utils.set_random_seed(rank)
    model = tiny_model()
    before = disagreement(model)
    broadcast_state(model)
    return before, disagreement(model)


def one_step(rank: int) -> float:
    """How far it leads from one step over the rows of both ranks."""
    import keras

    model = distributed(keras.optimizers.SGD(0.5))
    alone = copy_of(model, keras.optimizers.SGD(0.5))
    x, y = examples(8)
    model.train_on_batch(x[rank::2], y[rank::2])
    assert disagreement(model) == ""
    alone.train_on_batch(x, y)
    return difference(model, alone)


def two_accumulated_steps(rank: int) -> tuple[float, float, float]:
    """How far the first and both of them lead, and how far they end from one step of all rows."""
    import keras

    model = distributed(keras.optimizers.Adam(0.1, gradient_accumulation_steps=2))
    start = copy_of(model, keras.optimizers.Adam(0.1))
    alone = copy_of(model, keras.optimizers.Adam(0.1))
    x, y = examples(8)
    moved = []
    for step in range(2):
        own = slice(2 * rank + 4 * step, 2 * rank + 4 * step + 2)
        model.train_on_batch(x[own], y[own])
        moved.append(difference(model, start))
    alone.train_on_batch(x, y)
    return moved[0], moved[1], difference(model, alone)


def one_step_in_fewer_bits(rank: int) -> float:
    """How far it leads from one step in float32."""
    import horovod.tensorflow as hvd
    import keras

    model = distributed(keras.optimizers.SGD(0.5), hvd.Compression.fp16)
    alone = copy_of(model, keras.optimizers.SGD(0.5))
    x, y = examples(8)
    model.train_on_batch(x[rank::2], y[rank::2])
    alone.train_on_batch(x, y)
    return difference(model, alone)


def metrics_of_unequal_shares(rank: int) -> float:
    """How far they are from those over all rows."""
    import keras

    from mask_ray.horovod.keras import global_metrics

    model = distributed(keras.optimizers.SGD(0.5))
    alone = copy_of(model, keras.optimizers.SGD(0.5))
    x, y = examples(10)
    own = slice(0, 7) if rank == 0 else slice(7, 10)
    model.evaluate(x[own], y[own], batch_size=2, verbose=0)
    averaged = global_metrics(model)
    expected = alone.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
    return max(abs(averaged[name] - expected[name]) for name in expected)


def steps_until_a_loss_is_not_finite(rank: int) -> list[bool]:
    """What a rank hears of its own steps when the other one's second batch is bad."""
    import keras

    from mask_ray.horovod.keras import distributed_optimizer
    from mask_ray.training.steps import compiled_steps

    inputs = keras.layers.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(inputs))
    optimizer = distributed_optimizer(keras.optimizers.SGD(0.5))
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    train_step, _ = compiled_steps(model)
    rows, labels = examples(8)[0], np.zeros(8, np.int64)
    bad = np.full_like(rows, np.nan) if rank == 1 else rows
    return [bool(train_step(batch, labels)) for batch in (rows, bad)]


def averaged_moving_mean(rank: int) -> list[float]:
    import keras

    from mask_ray.horovod.keras import average_batch_statistics

    norm = keras.Sequential([keras.layers.Input((4,)), keras.layers.BatchNormalization()])
    norm.layers[0].moving_mean.assign(np.full(4, float(rank)))
    average_batch_statistics(norm)
    return list(norm.layers[0].moving_mean.numpy().tolist())


def module_of_a_saved_optimizer(rank: int) -> str:
    import keras

    model = distributed(keras.optimizers.SGD(0.5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return str(type(keras.models.load_model(path).optimizer).__module__)


CLAIMS = (
    weights_before_and_after_the_broadcast,
    one_step,
    two_accumulated_steps,
    one_step_in_fewer_bits,
    metrics_of_unequal_shares,
    steps_until_a_loss_is_not_finite,
    averaged_moving_mean,
    module_of_a_saved_optimizer,
)


def try_all_claims() -> None:
    """Each on two ranks, beside the same work done by one process."""
    import horovod.tensorflow as hvd

    hvd.init()
    report({claim.__name__: claim(hvd.rank()) for claim in CLAIMS} | {"size": hvd.size()})


class TestTwoWorkers:
    @pytest.fixture(scope="class")
    def found(self, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        metrics: dict[str, Any] = fit(try_all_claims, tmp_path_factory.mktemp("claims")).metrics
        assert metrics["size"] == 2
        return metrics

    def test_differ_until_rank_0_has_given_its_weights(self, found: dict[str, Any]) -> None:
        before, after = found["weights_before_and_after_the_broadcast"]
        assert "the workers' weights differ" in before
        assert after == ""

    def test_take_the_step_of_one_process_on_all_rows(self, found: dict[str, Any]) -> None:
        assert found["one_step"] < 1e-6

    def test_accumulate_gradients_into_the_step_of_one_process(self, found: dict[str, Any]) -> None:
        first, both, from_alone = found["two_accumulated_steps"]
        assert first == 0
        assert both > 0.05
        assert from_alone < 1e-5

    def test_send_gradients_in_fewer_bits_at_little_loss(self, found: dict[str, Any]) -> None:
        # Half a unit in the last of float16's 11 bits, of gradients below 2, at a rate of 0.5.
        assert 0 < found["one_step_in_fewer_bits"] < 2**-10

    def test_count_every_row_once_in_metrics(self, found: dict[str, Any]) -> None:
        assert found["metrics_of_unequal_shares"] < 1e-6

    def test_end_at_the_same_loss_that_is_not_finite(self, found: dict[str, Any]) -> None:
        assert found["steps_until_a_loss_is_not_finite"] == [True, False]

    def test_share_their_batch_statistics(self, found: dict[str, Any]) -> None:
        assert found["averaged_moving_mean"] == [0.5] * 4

    def test_save_models_that_load_without_horovod(self, found: dict[str, Any]) -> None:
        assert found["module_of_a_saved_optimizer"].startswith("keras.")


@pytest.mark.usefixtures("ray_local")
class TestFaults:
    def test_an_error_that_the_user_can_mend_is_not_worth_a_restart(self, tmp_path: Path) -> None:
        with pytest.raises(MaskRayError, match=r"^the disk is full$"):
            fit(refuse, tmp_path, max_failures=3, train_loop_config={"folder": str(tmp_path)})
        assert len(list(tmp_path.glob("started-*"))) == 2

    def test_ctrl_c_ends_the_workers(self, tmp_path: Path) -> None:
        threading.Thread(target=interrupt_when_started, args=(tmp_path,)).start()
        with accepting_sigint(), pytest.raises(KeyboardInterrupt):
            fit(work_for_ever, tmp_path, train_loop_config={"folder": str(tmp_path)})
        pids = [int(path.name.partition("-")[2]) for path in tmp_path.glob("started-*")]
        assert len(pids) == 2
        polling.wait_until(lambda: not any(map(psutil.pid_exists, pids)))


def note_start(folder: str) -> None:
    Path(folder, f"started-{os.getpid()}").touch()


def refuse(config: dict[str, Any]) -> None:
    note_start(config["folder"])
    if ray.train.get_context().get_world_rank() == 0:
        work_for_ever(config)
    polling.wait_until(lambda: len(list(Path(config["folder"]).glob("started-*"))) % 2 == 0)
    raise MaskRayError("the disk is full")


def work_for_ever(config: dict[str, Any]) -> None:
    note_start(config["folder"])
    polling.wait_until(lambda: False, timeout_s=3000)


def interrupt_when_started(folder: Path) -> None:
    polling.wait_until(lambda: len(list(folder.glob("started-*"))) == 2)
    os.kill(os.getpid(), signal.SIGINT)


def test_on_v1_the_name_is_ray_s_own_trainer() -> None:
    """That it trains is shown by a whole run; see training/test_run.py."""
    code = "from mask_ray.horovod import HorovodTrainer; print(HorovodTrainer.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_TRAIN_V2_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "ray.train.horovod.horovod_trainer"
