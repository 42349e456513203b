"""What the driver gives to every worker of a run. Imports no Keras: the driver builds it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask_ray.config import TrainSettings


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Everything that a worker needs, the same for all workers of a run; it travels by pickle.

    Args:
        settings: Settings of the run.
        class_names: Names of the classes, in the order of the model's outputs.
        num_train: Training images over all workers.
        run_id: Id of the MLflow run, also the name of the checkpoints' folder in `storage`.
        tracking_uri: Address of the MLflow tracking store.
        storage: Folder on shared storage that holds the checkpoints of all runs.
        weights: Reference to the backbone's weights; None to train from scratch.
        features: Folder of `mask_ray.training.features`; None if no head is trained by itself.
        shared: Actor from `shared_state.start_shared_state`.
        tensorboard: Folder of event files; None to write none.
        export: Whether the last checkpoint also holds the model as Keras and ONNX files.
        class_weights: Weight of each class in the loss; None for no weights.
        num_threads: Threads of each worker; None for an equal share of its node's cores.
    """

    settings: TrainSettings
    class_names: list[str]
    num_train: int
    run_id: str
    # Ray shows the text of this object, and the address may hold a password.
    tracking_uri: str = field(repr=False)
    storage: Path
    weights: Any = None
    features: Path | None = None
    shared: Any = None
    tensorboard: Path | None = None
    export: bool = True
    class_weights: tuple[float, ...] | None = None
    num_threads: int | None = None
