"""Checkpoints, from which a run resumes. Imports no Keras: the driver reads names from here."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.files import sha256_of
from mask_ray.training.schedule import Position

if TYPE_CHECKING:
    import keras
    import ray.train

# Files of the trained model, in the last checkpoint of a run.
ONNX_FILE = "model.onnx"
KERAS_FILE = "model.keras"

_TRAINED = "trained.npz"
_BEST = "best.npz"
_STATE = "state.json"

Weights = list[NDArray[Any]]


class CheckpointError(MaskRayError):
    """A checkpoint cannot be written or read; the message says what is lost and what is kept."""


def write(folder: Path, trained: "keras.Model", best: Weights, phase: int, done: Position) -> None:
    """Write a checkpoint.

    Args:
        folder: An empty folder.
        trained: The compiled model that the current phase trains.
        best: Weights of that model at the best epoch.
        phase: Index of the current phase.
        done: Position to resume from, perhaps in the next phase.

    Raises:
        OSError: the disk is full.
    """
    # Not in Keras's HDF5 format: on a full disk it crashes the process.
    np.savez(folder / _TRAINED, *(variable.numpy() for variable in _variables(trained)))
    np.savez(folder / _BEST, *best)
    state = {
        "phase": phase,
        "position": asdict(done),
        "sha256": {name: sha256_of(folder / name) for name in (_TRAINED, _BEST)},
    }
    (folder / _STATE).write_text(json.dumps(state))


def _variables(trained: "keras.Model") -> list[Any]:
    return [*trained.weights, *trained.optimizer.variables]


@dataclass(frozen=True)
class Saved:
    """Contents of a checkpoint.

    Args:
        path: Folder of the checkpoint, for errors.
        phase: Index of the phase that it was written in.
        position: Position to resume from, perhaps in the next phase.
        trained: Weights of the model that the phase trains, then its optimizer's variables.
        best: Weights of that model at the best epoch.
    """

    path: str
    phase: int
    position: Position
    trained: Weights
    best: Weights

    def restore(self, trained: "keras.Model") -> None:
        """Set the weights and the optimizer's variables of a compiled model.

        Raises:
            CheckpointError: they do not fit the model.
        """
        with _explained_damage(self.path):
            for variable, value in zip(_variables(trained), self.trained, strict=True):
                variable.assign(value)


def read(checkpoint: "ray.train.Checkpoint") -> Saved:
    """Read a checkpoint and check it against its SHA-256 digests.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    with checkpoint.as_directory() as name, _explained_damage(checkpoint.path):
        folder = Path(name)
        state = json.loads((folder / _STATE).read_text())
        phase, position = int(state["phase"]), Position(**state["position"])
        for file_name, digest in state["sha256"].items():
            if sha256_of(folder / file_name) != digest:
                raise ValueError(f"{file_name} is not as it was written")
        trained, best = _load(folder / _TRAINED), _load(folder / _BEST)
    return Saved(checkpoint.path, phase, position, trained, best)


def _load(path: Path) -> Weights:
    with np.load(path) as saved:
        return [saved[key] for key in saved.files]


@contextmanager
def _explained_damage(path: str) -> Iterator[None]:
    """Turn any error into one that names the damaged checkpoint and what to do."""
    try:
        yield
    except Exception as error:  # errors of numpy, zipfile and Keras share no base class
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({first_line}). Remove it, or start a new run"
        ) from error
