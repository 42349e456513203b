"""A checkpoint can be resumed from; a damaged one is rejected by name."""

from collections.abc import Callable
from math import inf
from pathlib import Path

import keras
import numpy as np
import pytest
from ray.train import Checkpoint

from mask_ray.training import checkpoints
from mask_ray.training.checkpoints import CheckpointError
from mask_ray.training.schedule import Position

FILES = ("trained.npz", "best.npz", "state.json")
DONE = Position(epoch=5, phase=1, phase_epoch=2, best_loss=0.25, stale_epochs=1)


def compiled(num_units: int = 3) -> keras.Model:
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(num_units)])
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def train(model: keras.Model, num_steps: int = 3) -> None:
    rng = np.random.default_rng(num_steps)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    for _ in range(num_steps):
        model.train_on_batch(x, y)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model = compiled()
    train(model)
    return model


@pytest.fixture
def folder(trained: keras.Model, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    best = [weight + 1 for weight in trained.get_weights()]
    checkpoints.write(folder, trained, best, 1, DONE)
    return folder


def read(folder: Path, model: keras.Model) -> tuple[Position, list[np.ndarray]]:
    saved = checkpoints.read(Checkpoint.from_directory(folder))
    saved.restore(model)
    return saved.position, saved.best


def assert_same(some: list[np.ndarray], others: list[np.ndarray]) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_position_and_best_weights_come_back(folder: Path, trained: keras.Model) -> None:
    position, best = read(folder, compiled())
    assert position == DONE
    assert_same(best, [weight + 1 for weight in trained.get_weights()])


def test_the_model_of_the_phase_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    never_stopped, resumed = compiled(), compiled()
    train(never_stopped)
    checkpoints.write(tmp_path, never_stopped, never_stopped.get_weights(), 1, DONE)
    saved = checkpoints.read(Checkpoint.from_directory(tmp_path))
    assert saved.phase == 1
    saved.restore(resumed)
    assert_same(resumed.get_weights(), never_stopped.get_weights())
    # Adam's next step depends on its moments, and on how many steps there were.
    for model in (never_stopped, resumed):
        train(model, num_steps=1)
    assert_same(resumed.get_weights(), never_stopped.get_weights())


def test_a_run_that_has_no_best_loss_yet_comes_back(trained: keras.Model, tmp_path: Path) -> None:
    start = Position(epoch=1, phase_epoch=1, best_loss=inf, stale_epochs=1)
    checkpoints.write(tmp_path, trained, trained.get_weights(), 0, start)
    position, _ = read(tmp_path, compiled())
    assert position == start


def cut_at(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def fill(start: bytes) -> Callable[[Path], None]:
    def overwrite(path: Path) -> None:
        path.write_bytes(start + np.random.default_rng(0).bytes(2000))

    return overwrite


DAMAGES = {
    "removed": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    **{f"cut at {share}": cut_at(share) for share in (0.02, 0.3, 0.6, 0.9)},
    "garbage": fill(b""),
    "garbage like a zip": fill(b"PK\x03\x04"),
    "garbage like HDF5": fill(b"\x89HDF\r\n\x1a\n"),
    "garbage like JSON": lambda path: path.write_text('{"phase": 1, "position": {"nope": 2}}'),
    "null": lambda path: path.write_text("null"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_told_by_the_checkpoint_s_name(folder: Path, name: str, damage: str) -> None:
    DAMAGES[damage](folder / name)
    assert_told(folder)


def assert_told(folder: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        read(folder, compiled())
    message = str(told.value)
    assert message.startswith(f"the checkpoint {folder} is damaged (")
    assert message.endswith("Remove it, or start a new run")
    assert "\n" not in message


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    assert_told(tmp_path / "gone")


def test_a_model_that_it_does_not_fit_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        read(folder, compiled(num_units=5))


@pytest.mark.parametrize("name", ["best.npz", "trained.npz"])
def test_a_changed_byte_is_told(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(whole), 20):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        (folder / name).write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match=f"{name} is not as it was written"):
            read(folder, compiled())


@pytest.mark.parametrize("room_bytes", [0, 4096, 20_000, 100_000, 200_000])
def test_a_full_disk_raises_what_a_worker_can_explain(small_disk: Path, room_bytes: int) -> None:
    (small_disk / "others").write_bytes(b"x" * (256 * 1024 - room_bytes))
    model = compiled(num_units=20_000)
    with pytest.raises((OSError, RuntimeError)):
        checkpoints.write(small_disk, model, model.get_weights(), 0, DONE)
