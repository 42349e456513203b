"""What a run needs to go on after a fault. Imports no Keras: the driver reads names from here."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.phases import Position

if TYPE_CHECKING:
    import keras

# The model that a finished run ends with.
ONNX_FILE = "model.onnx"
KERAS_FILE = "model.keras"

_TRAINED = "trained.weights.h5"
_BEST = "best.npz"
_STATE = "state.json"

Weights = list[NDArray[Any]]


class CheckpointError(MaskRayError):
    """A checkpoint cannot be written or read; the message says what is lost and what is not."""


def write(folder: Path, trained: "keras.Model", best: Weights, phase: int, done: Position) -> None:
    """Write a checkpoint.

    Args:
        folder: An empty one.
        trained: The model that is trained in the current phase, compiled: Keras writes the
            optimizer's state beside its weights.
        best: Its weights of the best epoch.
        phase: Index of the phase.
        done: The position to go on from, perhaps in the next phase.

    Raises:
        OSError, RuntimeError: the folder has no room for it; h5py raises either.
    """
    trained.save_weights(folder / _TRAINED)
    np.savez(folder / _BEST, *best)
    (folder / _STATE).write_text(json.dumps({"phase": phase, "position": asdict(done)}))


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
            with np.load(folder / _BEST) as saved:
                best = [saved[key] for key in saved.files]
        trained = begin(phase)
        with _damage_named(checkpoint):
            trained.load_weights(folder / _TRAINED)
    return position, best


@contextmanager
def _damage_named(checkpoint: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # numpy's, zipfile's, h5py's and Keras's own share no base class
        raise CheckpointError(
            f"the checkpoint {checkpoint.path} is damaged ({_first_line(error)}). "
            "Remove it and resume from the one before, or start a new run"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
