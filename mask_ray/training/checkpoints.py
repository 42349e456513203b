"""What a run needs to go on after a fault. Imports no Keras: the driver reads names from here."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.training.schedule import Position

if TYPE_CHECKING:
    import keras

# The model that a finished run ends with.
ONNX_FILE = "model.onnx"
KERAS_FILE = "model.keras"

_TRAINED = "trained.npz"
_BEST = "best.npz"
_STATE = "state.json"

Weights = list[NDArray[Any]]


class CheckpointError(MaskRayError):
    """A checkpoint cannot be written or read; the message says what is lost and what is not."""


def write(folder: Path, trained: "keras.Model", best: Weights, phase: int, done: Position) -> None:
    """Write a checkpoint.

    Args:
        folder: An empty one.
        trained: The model that is trained in the current phase, compiled.
        best: Its weights of the best epoch.
        phase: Index of the phase.
        done: The position to go on from, perhaps in the next phase.

    Raises:
        OSError: the folder has no room for it.
    """
    # Not as Keras's HDF5 file, which on a full disk ends in a crash of the process.
    np.savez(folder / _TRAINED, *(variable.numpy() for variable in _variables(trained)))
    np.savez(folder / _BEST, *best)
    state = {
        "phase": phase,
        "position": asdict(done),
        "sha256": {name: _digest(folder / name) for name in (_TRAINED, _BEST)},
    }
    (folder / _STATE).write_text(json.dumps(state))


def _variables(trained: "keras.Model") -> list[Any]:
    return [*trained.weights, *trained.optimizer.variables]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(checkpoint: Any, begin: "Callable[[int], keras.Model]") -> tuple[Position, Weights]:
    """Read a checkpoint into the model that `begin(phase)` compiles.

    Args:
        checkpoint: Of Ray Train.
        begin: Given the phase's index, makes the model that was trained.

    Returns:
        The position to go on from, and the weights of the best epoch.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    with checkpoint.as_directory() as name:
        folder = Path(name)
        with _damage_named(checkpoint):
            state = json.loads((folder / _STATE).read_text())
            phase, position = int(state["phase"]), Position(**state["position"])
            for file_name, digest in state["sha256"].items():
                if _digest(folder / file_name) != digest:
                    raise ValueError(f"{file_name} is not as it was written")
            weights, best = _load(folder / _TRAINED), _load(folder / _BEST)
        trained = begin(phase)
        with _damage_named(checkpoint):
            for variable, value in zip(_variables(trained), weights, strict=True):
                variable.assign(value)
    return position, best


def _load(path: Path) -> Weights:
    with np.load(path) as saved:
        return [saved[key] for key in saved.files]


@contextmanager
def _damage_named(checkpoint: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # numpy's, zipfile's and Keras's own share no base class
        raise CheckpointError(
            f"the checkpoint {checkpoint.path} is damaged ({_first_line(error)}). "
            "Remove it, or start a new run"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
