"""The training loop that each Horovod worker runs: batches in, checkpoints and metrics out.

Knows Keras, Horovod and Ray Train's session (`report`, `get_checkpoint`, `get_dataset_shard`),
and runs alike on Ray Train V2 and on Ray's own V1 HorovodTrainer.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import ray
import ray.train
import tensorflow as tf
from numpy.typing import NDArray

from mask_ray import model as models
from mask_ray.config import TrainSettings
from mask_ray.horovod.keras import (
    average_batch_statistics,
    broadcast_state,
    check_ranks_agree,
    distributed_optimizer,
    global_metrics,
)

if TYPE_CHECKING:
    from mask_ray import tracking

_POSITION_FILE = "position.json"

# Rows held for shuffling by a worker; 1,024 images of 128 px take 50 MB.
_SHUFFLE_ROWS = 1024
_PROGRESS_EVERY_S = 10.0

# Takes images, uint8 (N, S, S, 3), and labels, int64 (N,); leaves its result in the model.
Step = Callable[[NDArray[np.uint8], NDArray[np.int64]], None]


@dataclass(frozen=True)
class Phase:
    """Some epochs with the same layers trainable."""

    name: str
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Position:
    """Epochs done, in all and within the current phase."""

    epoch: int = 0
    phase: int = 0
    phase_epoch: int = 0


def phases_of(settings: TrainSettings) -> list[Phase]:
    """The phases a run goes through, in order; those without epochs left out."""
    rate = settings.learning_rate
    if settings.backbone_weights == "none":
        phases = [Phase("scratch", settings.finetune_epochs, rate)]
    else:
        phases = [
            Phase("head", settings.head_epochs, rate),
            Phase("finetune", settings.finetune_epochs, rate / 10),
        ]
    return [phase for phase in phases if phase.epochs]


def train(config: dict[str, Any]) -> None:
    """Train, report every epoch, and go on from the last checkpoint if there is one.

    Args:
        config: `settings` (of TrainSettings), `num_classes`, `num_train` (images over all
            workers), `weights_ref` (backbone weights in Ray's object store, or None),
            `run_id` and `tracking_uri`.
    """
    hvd.init()
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    settings = TrainSettings(**config["settings"])
    _use_devices()
    # Each worker draws its own augmentations; the weights are rank 0's after the broadcast.
    keras.utils.set_random_seed(settings.seed + hvd.rank())
    model = models.build(
        num_classes=config["num_classes"],
        image_size=settings.image_size,
        alpha=settings.alpha,
        from_scratch=settings.backbone_weights == "none",
    )
    if hvd.rank() == 0 and config["weights_ref"] is not None:
        models.set_backbone_weights(model, ray.get(config["weights_ref"]))
    session = _Session(config, settings, model)
    session.run()
    hvd.shutdown()


def _use_devices() -> None:
    """One GPU a worker, by local rank, where there are any; an equal share of the cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        gpu = gpus[hvd.local_rank() % len(gpus)]
        tf.config.set_visible_devices(gpu, "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)
    num_threads = max(1, (os.cpu_count() or 1) // hvd.local_size())
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def _open_run(config: dict[str, Any]) -> "tracking.Run":
    # Imported where it is used: the other workers need not spend the seconds.
    from mask_ray import tracking

    os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
    return tracking.Run(config["run_id"])


class _Session:
    """One attempt at the run: from the start or the last checkpoint to the end."""

    def __init__(self, config: dict[str, Any], settings: TrainSettings, model: keras.Model) -> None:
        self._settings = settings
        self._model = model
        self._phases = phases_of(settings)
        self._batch_size = max(1, settings.batch_size // hvd.size())
        self._num_train = config["num_train"] // hvd.size()
        self._train = ray.train.get_dataset_shard("train")
        self._val = ray.train.get_dataset_shard("val")
        self._run = _open_run(config) if hvd.rank() == 0 else None

    def run(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        position = Position()
        if checkpoint is not None:
            position = self._restore(checkpoint)
        elif hvd.rank() == 0:
            _say(f"training on {hvd.size()} workers")
        while position.phase < len(self._phases):
            if position.phase_epoch == 0:
                self._begin(self._phases[position.phase])
            position = self._epoch(position)

    def _begin(self, phase: Phase) -> None:
        """Set what is trainable, with a new optimizer, the same on every worker."""
        if phase.name == "head":
            models.freeze_backbone(self._model)
        else:
            models.thaw_backbone(self._model, from_scratch=phase.name == "scratch")
        steps = phase.epochs * -(-self._num_train // self._batch_size)
        rate = keras.optimizers.schedules.CosineDecay(phase.learning_rate, steps)
        self._model.compile(
            optimizer=distributed_optimizer(keras.optimizers.Adam(rate)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
        broadcast_state(self._model)
        self._train_step, self._test_step = _compiled_steps(self._model)

    def _epoch(self, position: Position) -> Position:
        phase = self._phases[position.phase]
        title = f"{phase.name} {position.phase_epoch + 1}/{phase.epochs}"
        started = time.perf_counter()
        metrics = self._train_epoch(title, position.epoch)
        train_s = time.perf_counter() - started
        metrics |= {f"val_{name}": value for name, value in self._validate().items()}
        metrics |= {
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": self._num_train * hvd.size() / train_s,
        }
        done = _after(position, phase)
        self._report(title, metrics, position.epoch, done)
        return done

    def _train_epoch(self, title: str, epoch: int) -> dict[str, float]:
        """One pass over the shard; metrics over the images of all workers."""
        progress = _Progress(title, self._num_train)
        self._model.reset_metrics()
        rng = np.random.default_rng([self._settings.seed, epoch, hvd.rank()])
        for images, labels in _shuffled(self._train, self._batch_size, rng):
            self._train_step(images, labels)
            progress.add(len(labels))
        metrics = global_metrics(self._model)
        average_batch_statistics(self._model)
        check_ranks_agree(self._model)
        return metrics

    def _validate(self) -> dict[str, float]:
        """Each worker may have another number of images, or none."""
        self._model.reset_metrics()
        for batch in self._val.iter_batches(batch_size=self._batch_size, prefetch_batches=2):
            self._test_step(batch["image"], batch["label"])
        return global_metrics(self._model)

    def _report(self, title: str, metrics: dict[str, float], epoch: int, done: Position) -> None:
        if self._run is None:
            ray.train.report(metrics)
            return
        _say(_progress_line(title, metrics))
        self._run.log_metrics(metrics, step=epoch)
        with tempfile.TemporaryDirectory() as folder:
            # With the optimizer's state, which Keras keeps beside the weights.
            self._model.save_weights(Path(folder, models.WEIGHTS_FILE))
            Path(folder, _POSITION_FILE).write_text(json.dumps(asdict(done)))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _restore(self, checkpoint: Any) -> Position:
        with checkpoint.as_directory() as folder:
            position = Position(**json.loads(Path(folder, _POSITION_FILE).read_text()))
            if hvd.rank() == 0:
                _say(f"going on after epoch {position.epoch}")
            if position.phase_epoch:
                self._begin(self._phases[position.phase])
            self._model.load_weights(Path(folder, models.WEIGHTS_FILE))
        return position


def _compiled_steps(model: keras.Model) -> tuple[Step, Step]:
    """Keras's own training and test steps, compiled once for batches of any length."""
    size = model.input_shape[1]
    # Metrics make their variables on first use; inside a compiled step that compiles it twice.
    model.test_step((np.zeros((1, size, size, 3), np.uint8), np.zeros(1, np.int64)))
    signature = [
        tf.TensorSpec((None, size, size, 3), tf.uint8),
        tf.TensorSpec((None,), tf.int64),
    ]

    def train_step(image: tf.Tensor, label: tf.Tensor) -> None:
        model.train_step((image, label))

    def test_step(image: tf.Tensor, label: tf.Tensor) -> None:
        model.test_step((image, label))

    compiled = partial(tf.function, input_signature=signature)
    return compiled(train_step), compiled(test_step)


def _shuffled(
    shard: Any, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Batches of a shard, its rows shuffled within chunks of about `_SHUFFLE_ROWS`.

    Ray's own `local_shuffle_buffer_size` took as long for an image of 96 px as a training step.
    """
    chunk_size = batch_size * -(-_SHUFFLE_ROWS // batch_size)
    for chunk in shard.iter_batches(batch_size=chunk_size, prefetch_batches=1):
        order = rng.permutation(len(chunk["label"]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield chunk["image"][rows], chunk["label"][rows]


def _after(position: Position, phase: Phase) -> Position:
    if position.phase_epoch + 1 == phase.epochs:
        return Position(position.epoch + 1, position.phase + 1, 0)
    return Position(position.epoch + 1, position.phase, position.phase_epoch + 1)


def _progress_line(title: str, metrics: dict[str, float]) -> str:
    return (
        f"{title}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}"
        f"  val_loss {metrics['val_loss']:.4f}  val_accuracy {metrics['val_accuracy']:.4f}"
        f"  {metrics['images_per_second']:.0f} images/s  {metrics['epoch_seconds']:.1f} s"
    )


class _Progress:
    """Rank 0 says, every ten seconds, how far a long epoch has come."""

    def __init__(self, title: str, num_images: int) -> None:
        self._title = title
        self._num_images = num_images
        self._done = 0
        self._started: float | None = None

    def add(self, num_images: int) -> None:
        now = time.perf_counter()
        if self._started is None:
            # The first batch also compiles the step, which says nothing of those to come.
            self._started, self._said, self._first = now, now, num_images
        self._done += num_images
        if hvd.rank() == 0 and now - self._said >= _PROGRESS_EVERY_S:
            self._said = now
            per_image_s = (now - self._started) / (self._done - self._first)
            left_s = per_image_s * (self._num_images - self._done)
            _say(f"{self._title}  {self._done}/{self._num_images} images  {left_s:.0f} s left")


def _say(line: str) -> None:
    """Print once: Ray Train also logs what goes to a wrapped `sys.stdout`."""
    print(line, file=sys.__stdout__, flush=True)
