"""The training loop of each Horovod worker: batches in, checkpoints and a model out.

Uses Keras, Horovod and Ray Train's session (`report`, `get_checkpoint`, `get_dataset_shard`). Runs
unchanged under `mask_ray.horovod` on Ray Train V2 and under `ray.train.horovod` on V1.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import horovod.tensorflow as hvd
import keras
import ray
import ray.train
import tensorflow as tf

from mask_ray import ray_internals
from mask_ray.config import MaskRayError, TrainSettings
from mask_ray.horovod.keras import (
    average_batch_statistics,
    broadcast_state,
    check_ranks_agree,
    distributed_optimizer,
    global_metrics,
)
from mask_ray.models import keras_model as models
from mask_ray.progress import Progress, say
from mask_ray.training import checkpoints
from mask_ray.training.batches import Batches, FeatureBatches, ImageBatches
from mask_ray.training.devices import horovod_environment, use_devices
from mask_ray.training.loss import loss_of
from mask_ray.training.optimizer import adam_of
from mask_ray.training.schedule import (
    Phase,
    Position,
    last_epoch,
    phases_of,
    title_of,
)
from mask_ray.training.shared_state import Beats
from mask_ray.training.steps import compiled_steps
from mask_ray.training.tensorboard import EventFiles
from mask_ray.training.worker_config import WorkerConfig

if TYPE_CHECKING:
    from mask_ray import tracking

# Makes a context that one pass over the training images runs in.
AroundEpoch = Callable[[], AbstractContextManager[None]]


class ShardError(MaskRayError):
    """A worker has fewer rows than the others, which would wait for it without end."""


class DivergedError(MaskRayError):
    """The loss is NaN or infinite, so the run cannot end in a useful model."""


def train(config: WorkerConfig, around_epoch: AroundEpoch = nullcontext) -> None:
    """Train, report to MLflow and Ray Train, and resume from the last checkpoint if there is one.

    The last checkpoint holds the model of the best epoch as Keras and ONNX files, if
    `config.export` is on.

    Args:
        config: What the driver gives to all workers.
        around_epoch: Context for each pass over the training images, to measure or delay it.

    Raises:
        ShardError: this worker has fewer training images than the others.
        DivergedError: the loss is not finite. Raised by all workers, at the same step.
        checkpoints.CheckpointError: a checkpoint cannot be written or read.
    """
    settings = config.settings
    timeline = Path(tempfile.mkdtemp(), "timeline.json")
    os.environ.update(horovod_environment(settings, timeline))
    hvd.init()
    for name in ray_internals.train_logger_names():
        logging.getLogger(name).setLevel(logging.WARNING)
    use_devices(settings.precision, config.num_threads, hvd.local_rank(), hvd.local_size())
    # Each worker draws its own dropout; the broadcast gives all of them rank 0's weights.
    keras.utils.set_random_seed(settings.seed + hvd.rank())
    beats = Beats(config.shared if hvd.rank() == 0 else None)
    beats.beat("building the model")
    plain = _build(config)
    trains_backbone = any(phase.name != "head" for phase in phases_of(settings))
    model = models.fused_twin(plain) if trains_backbone else plain
    if hvd.rank() == 0 and config.weights is not None:
        models.load_backbone_weights(model, ray.get(config.weights))
    run = _open_run(config) if hvd.rank() == 0 else None
    _Session(config, model, plain, run, around_epoch).run()
    hvd.shutdown()
    if run is not None and settings.timeline:
        run.log_file(timeline)
    if run is not None and config.tensorboard is not None:
        run.log_folder(config.tensorboard / run.run_id, "tensorboard")


def _build(config: WorkerConfig) -> keras.Model:
    return models.build(
        num_classes=len(config.class_names),
        image_size=config.settings.image_size,
        alpha=config.settings.alpha,
        from_scratch=config.settings.backbone_weights == "none",
    )


def _open_run(config: WorkerConfig) -> "tracking.Run":
    # Imported here, since it takes seconds that only rank 0 has to spend.
    from mask_ray import tracking

    os.environ["MLFLOW_TRACKING_URI"] = config.tracking_uri
    return tracking.Run(config.run_id)


class _RunningPhase:
    """A phase in progress on this worker: the model it trains, on its batches, and the best epoch.

    Args:
        config: What the driver gives to all workers.
        index: Index of the phase in the run.
        model: The whole classifier, whose weights the phase changes.
        saved: Checkpoint of the same phase to continue from.

    Raises:
        checkpoints.CheckpointError: the checkpoint does not fit the model.
    """

    def __init__(
        self,
        config: WorkerConfig,
        index: int,
        model: keras.Model,
        saved: checkpoints.Saved | None = None,
    ) -> None:
        settings = config.settings
        self.index = index
        self.phase = phases_of(settings)[index]
        self.num_images = config.num_train // hvd.size()
        self._batch_size = max(1, settings.batch_size // hvd.size())
        self._num_steps = -(-self.num_images // self._batch_size)
        self._batches = _open_batches(self.phase, config)
        self._beats = Beats(config.shared if hvd.rank() == 0 else None)
        self._title = self.phase.name
        self.trained = _trained_in(self.phase, settings, model)
        self.trained.compile(
            optimizer=_optimizer(self.phase, settings, self._num_steps),
            loss=loss_of(config.class_weights),
            metrics=["accuracy"],
            jit_compile=False,
        )
        broadcast_state(self.trained)
        self._train_step, self._test_step = compiled_steps(self.trained)
        if saved is not None:
            saved.restore(self.trained)
        self.best = self.trained.get_weights() if saved is None else saved.best

    def train_epoch(self, title: str, epoch: int) -> dict[str, float]:
        """Pass once over this worker's rows; return metrics over the images of all workers."""
        progress = Progress(title, self.num_images, shown=hvd.rank() == 0)
        self._title = title
        self.trained.reset_metrics()
        batches = self._batches.train(epoch, self._batch_size)
        for step in range(self._num_steps):
            batch = next(batches, None)
            if batch is None:
                raise ShardError(
                    f"the images of worker {hvd.rank()} ended after {step} of "
                    f"{self._num_steps} steps of epoch {epoch + 1}"
                )
            if not self._train_step(*batch):
                raise _diverged(f"step {step + 1} of {self._num_steps} of epoch {epoch + 1}")
            progress.add(len(batch[1]))
            self._beats.beat(title)
        metrics = global_metrics(self.trained)
        average_batch_statistics(self.trained)
        check_ranks_agree(self.trained)
        return metrics

    def validate(self) -> dict[str, float]:
        """Return `val_...` metrics over the validation images of all workers."""
        self.trained.reset_metrics()
        for batch in self._batches.val():
            self._test_step(*batch)
            self._beats.beat(f"validation of {self._title}")
        return {f"val_{name}": value for name, value in global_metrics(self.trained).items()}

    def keep_as_best(self) -> None:
        """Remember the current weights as those of the best epoch."""
        self.best = self.trained.get_weights()

    def return_to_best(self) -> None:
        """Set the weights of the best epoch."""
        self.trained.set_weights(self.best)


def _diverged(where: str) -> DivergedError:
    return DivergedError(
        f"the loss is not finite (NaN or infinity) at {where}, so training stops and no model is "
        "registered. Try a lower learning_rate or finetune_learning_rate, or more warmup_epochs"
    )


def _open_batches(phase: Phase, config: WorkerConfig) -> Batches:
    seed = config.settings.seed
    if phase.name == "head":
        assert config.features is not None, "the driver computes them for a head"
        return FeatureBatches(config.features, hvd.rank(), hvd.size(), seed)
    return ImageBatches(
        ray.train.get_dataset_shard("train"),
        ray.train.get_dataset_shard("val"),
        config.shared,
        hvd.rank(),
        seed,
    )


def _trained_in(phase: Phase, settings: TrainSettings, model: keras.Model) -> keras.Model:
    """Return the part of the classifier that a phase trains, with its layers made trainable."""
    if phase.name == "head":
        return models.head_of(model)
    models.thaw_backbone(model, settings.finetune_from if phase.name == "finetune" else None)
    return model


def _optimizer(phase: Phase, settings: TrainSettings, num_steps: int) -> keras.optimizers.Optimizer:
    """Return Adam on the phase's learning rates, which averages gradients over all workers."""
    adam = adam_of(phase, settings, num_steps, hvd.size())
    fp16 = settings.gradient_compression == "fp16"
    return distributed_optimizer(adam, hvd.Compression.fp16 if fp16 else hvd.Compression.none)


class _Session:
    """One attempt at a run: from its start, or its last checkpoint, to its end.

    Args:
        config: What the driver gives to all workers.
        model: The classifier to train, with the backbone's weights on rank 0.
        plain: A classifier of the same weights' shapes that Keras can save.
        run: The MLflow run on rank 0; None on the others.
        around_epoch: Context for each pass over the training images.
    """

    def __init__(
        self,
        config: WorkerConfig,
        model: keras.Model,
        plain: keras.Model,
        run: "tracking.Run | None",
        around_epoch: AroundEpoch,
    ) -> None:
        self._config = config
        self._model = model
        self._plain = plain
        self._run = run
        self._around_epoch = around_epoch
        self._num_phases = len(phases_of(config.settings))
        self._reported = time.perf_counter()
        self._events: EventFiles | None = None
        if run is not None and config.tensorboard is not None:
            self._events = EventFiles(config.tensorboard / run.run_id)

    def run(self) -> None:
        """Train every epoch that is left, then give the model to the driver."""
        current, position = self._start()
        while position.phase < self._num_phases:
            if position.phase != current.index:
                current = _RunningPhase(self._config, position.phase, self._model)
            position = self._epoch(current, position)
        self._finish(current, position)

    def _start(self) -> tuple[_RunningPhase, Position]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            if hvd.rank() == 0:
                say(f"training on {hvd.size()} workers")
            return _RunningPhase(self._config, 0, self._model), Position()
        saved = checkpoints.read(checkpoint)
        current = _RunningPhase(self._config, saved.phase, self._model, saved)
        if hvd.rank() == 0:
            after = last_epoch(phases_of(self._config.settings), saved.phase, saved.position)
            say(f"resuming after {after} on {hvd.size()} workers")
        return current, saved.position

    def _epoch(self, current: _RunningPhase, position: Position) -> Position:
        """Train one epoch, report it, and return the position after it."""
        phase = current.phase
        title = title_of(phase, position.phase_epoch + 1)
        started = time.perf_counter()
        with self._around_epoch():
            metrics = current.train_epoch(title, position.epoch)
        train_s = time.perf_counter() - started
        metrics |= current.validate()
        if not math.isfinite(metrics["val_loss"]):
            raise _diverged(f"the validation after epoch {position.epoch + 1}")
        metrics |= {
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": current.num_images * hvd.size() / train_s,
        }
        if metrics["val_loss"] < position.best_loss:
            current.keep_as_best()
        patience = self._config.settings.patience
        done = position.after(metrics["val_loss"], phase.epochs, patience, title)
        if done.phase > position.phase:
            current.return_to_best()
        self._report(title, metrics, current, done)
        return done

    def _report(
        self, title: str, metrics: dict[str, float], current: _RunningPhase, done: Position
    ) -> None:
        """Report an epoch to MLflow and, if a checkpoint is due, to Ray Train."""
        # MLflow first: Ray Tune may stop a trial as soon as Ray Train has the report.
        if self._run is not None:
            say(_progress_line(title, metrics))
            self._run.log_metrics(metrics, step=done.epoch - 1)
            if done.phase > current.index and done.best_epoch:
                lowest = f"lowest val_loss, {done.best_loss:.4f}"
                say(f"keeping the weights of {done.best_epoch}: {lowest}")
                self._run.set_tags({"best_epoch": done.best_epoch})
        if self._events is not None:
            self._events.add(current.phase.name, done.epoch - 1, metrics)
        due = time.perf_counter() - self._reported >= self._config.settings.checkpoint_every_s
        # Rank 0 decides: Ray Train wants the same number of reports from each worker.
        if hvd.broadcast(tf.constant(due or done.phase > current.index), root_rank=0):
            self._reported = time.perf_counter()
            self._checkpoint(metrics | {"epoch": done.epoch}, current, done)

    def _checkpoint(
        self, reported: dict[str, float], current: _RunningPhase, done: Position
    ) -> None:
        if hvd.rank() > 0:
            ray.train.report(reported)
            return
        with tempfile.TemporaryDirectory() as folder, self._explained_failure():
            ray.train.report(reported, checkpoint=_save(Path(folder), current, done))

    def _finish(self, current: _RunningPhase, position: Position) -> None:
        """Report the end of the run, with the model's files in a last checkpoint if exported."""
        ended = asdict(position) | {"finished": True}
        if self._run is None or not self._config.export:
            ray.train.report(ended)
            return
        say("exporting the kept epoch to ONNX")
        with tempfile.TemporaryDirectory() as folder, self._explained_failure():
            last = _save(Path(folder), current, position)
            self._export(Path(folder))
            ray.train.report(ended, checkpoint=last)

    def _export(self, folder: Path) -> None:
        """Write the model in float32, whatever it was trained in."""
        weights = self._model.get_weights()
        model = self._plain
        if keras.config.dtype_policy().name != "float32":
            keras.config.set_dtype_policy("float32")
            model = _build(self._config)
        model.set_weights(weights)
        model.save(folder / checkpoints.KERAS_FILE)
        onnx = folder / checkpoints.ONNX_FILE
        models.export_onnx(model, onnx, self._config.class_names, self._config.settings.alpha)

    @contextmanager
    def _explained_failure(self) -> Iterator[None]:
        """Turn errors of a full or missing disk into one that says how to resume."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5, of the `.keras` file, raises either
            run_id = self._config.run_id
            raise checkpoints.CheckpointError(
                f"the checkpoint cannot be written: {error}. The one before is kept in "
                f"{self._config.storage}/{run_id}; resume from it with --resume {run_id}"
            ) from error


def _save(folder: Path, current: _RunningPhase, done: Position) -> ray.train.Checkpoint:
    checkpoints.write(folder, current.trained, current.best, current.index, done)
    return ray.train.Checkpoint.from_directory(folder)


def _progress_line(title: str, metrics: dict[str, float]) -> str:
    return (
        f"{title}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}"
        f"  val_loss {metrics['val_loss']:.4f}  val_accuracy {metrics['val_accuracy']:.4f}"
        f"  {metrics['images_per_second']:.0f} images/s  {metrics['epoch_seconds']:.1f} s"
    )
