"""The training loop that each Horovod worker runs: batches in, checkpoints and a model out.

Knows Keras, Horovod and Ray Train's session (`report`, `get_checkpoint`, `get_dataset_shard`),
and runs alike on Ray Train V2 and on Ray's own V1 HorovodTrainer.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
from mask_ray.training.schedule import Phase, Position, phases_of, schedule_of
from mask_ray.training.tensorboard import EventFiles

if TYPE_CHECKING:
    from mask_ray import tracking

# Epochs on features take less than a second, and a report about as long: Ray Train's controller
# has to fetch it. Longer epochs report each.
_REPORT_EVERY_S = 5.0

# Takes a batch and its labels; leaves its result in the model.
Step = Callable[[NDArray[Any], NDArray[np.int64]], None]


class ShardError(MaskRayError):
    """A worker has fewer rows than the others, which would wait for it for ever."""


def train(config: dict[str, Any]) -> None:
    """Train, report every epoch, and go on from the last checkpoint if there is one.

    The last report's checkpoint holds the model of the best epoch, as Keras and ONNX files.

    Args:
        config: `settings` (of TrainSettings), `class_names`, `num_train` (images over all
            workers), `weights` (reference to the backbone's weights, or None), `features`
            (folder, or None), `epoch` (a `batches.Epoch`, or None), `run_id`, `tracking_uri`,
            `storage` (folder of the checkpoints), `tensorboard` (folder, or None), `export`
            (whether the run ends with a model's files) and `num_threads` (of this worker, or None
            for its share of the node).
    """
    settings = TrainSettings(**config["settings"])
    timeline = Path(tempfile.mkdtemp(), "timeline.json")
    os.environ.update(_horovod_environment(settings, timeline))
    hvd.init()
    for chatty in ray_internals.train_logger_names():
        logging.getLogger(chatty).setLevel(logging.WARNING)
    _use_devices(settings, config["num_threads"])
    # Each worker draws its own dropout; the weights are rank 0's after the broadcast.
    keras.utils.set_random_seed(settings.seed + hvd.rank())
    model = _build(config, settings)
    if hvd.rank() == 0 and config["weights"] is not None:
        models.load_backbone_weights(model, ray.get(config["weights"]))
    run = _open_run(config) if hvd.rank() == 0 else None
    _Session(config, settings, model, run).run()
    hvd.shutdown()
    if run is not None and settings.timeline:
        run.log_file(timeline)
    if run is not None and config["tensorboard"] is not None:
        run.log_folder(Path(config["tensorboard"], run.run_id), "tensorboard")


def _horovod_environment(settings: TrainSettings, timeline: Path) -> dict[str, str]:
    """What Horovod reads at `init`: https://horovod.readthedocs.io/en/stable/tensor-fusion.html."""
    env: dict[str, str] = {}
    if settings.fusion_threshold_mb is not None:
        env["HOROVOD_FUSION_THRESHOLD"] = str(int(settings.fusion_threshold_mb * 2**20))
    if settings.cycle_time_ms is not None:
        env["HOROVOD_CYCLE_TIME"] = str(settings.cycle_time_ms)
    if settings.timeline:
        env["HOROVOD_TIMELINE"] = str(timeline)
    return env


def _use_devices(settings: TrainSettings, num_threads: int | None) -> None:
    """One GPU a worker, by local rank, where there are any; an equal share of the cores."""
    gpus = tf.config.list_physical_devices("GPU")
    capability = (0, 0)
    if gpus:
        gpu = gpus[hvd.local_rank() % len(gpus)]
        tf.config.set_visible_devices(gpu, "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", capability)
    keras.config.set_dtype_policy(dtype_policy(settings.precision, capability))
    num_threads = num_threads or max(1, _num_cores() // hvd.local_size())
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def _num_cores() -> int:
    """Cores that this process may run on, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dtype_policy(precision: str, compute_capability: tuple[int, int]) -> str:
    """Keras's name for a precision setting, given a GPU's compute capability ((0, 0): no GPU).

    NVIDIA's GPUs compute in bfloat16 from 8.0 on:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions
    """
    if precision == "auto":
        precision = "bfloat16" if compute_capability >= (8, 0) else "float32"
    return "mixed_bfloat16" if precision == "bfloat16" else "float32"


def _build(config: dict[str, Any], settings: TrainSettings) -> keras.Model:
    return models.build(
        num_classes=len(config["class_names"]),
        image_size=settings.image_size,
        alpha=settings.alpha,
        from_scratch=settings.backbone_weights == "none",
    )


def _open_run(config: dict[str, Any]) -> "tracking.Run":
    # Imported where it is used: the other workers need not spend the seconds.
    from mask_ray import tracking

    os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
    return tracking.Run(config["run_id"])


class _Session:
    """One attempt at the run: from the start or the last checkpoint to the end."""

    def __init__(
        self,
        config: dict[str, Any],
        settings: TrainSettings,
        model: keras.Model,
        run: "tracking.Run | None",
    ) -> None:
        self._config = config
        self._settings = settings
        self._model = model
        self._run = run
        self._phases = phases_of(settings)
        self._batch_size = max(1, settings.batch_size // hvd.size())
        self._num_train = config["num_train"] // hvd.size()
        self._num_steps = -(-self._num_train // self._batch_size)
        self._reported = time.perf_counter()
        self._events: EventFiles | None = None
        if run is not None and config["tensorboard"] is not None:
            self._events = EventFiles(Path(config["tensorboard"], run.run_id))

    def run(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        position = Position()
        if checkpoint is not None:
            position = self._restore(checkpoint)
        elif hvd.rank() == 0:
            say(f"training on {hvd.size()} workers")
        while position.phase < len(self._phases):
            if position.phase_epoch == 0:
                self._begin(self._phases[position.phase])
            position = self._epoch(position)
        self._finish(position)

    def _begin(self, phase: Phase) -> None:
        """Set what is trained, with a new optimizer, the same on every worker."""
        self._batches = self._open_batches(phase)
        self._trained = self._trained_in(phase)
        self._trained.compile(
            optimizer=self._optimizer(phase),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
        broadcast_state(self._trained)
        self._train_step, self._test_step = _compiled_steps(self._trained)
        self._best = self._trained.get_weights()

    def _trained_in(self, phase: Phase) -> keras.Model:
        if phase.name == "head":
            return models.head_of(self._model)
        finetune_from = self._settings.finetune_from if phase.name == "finetune" else None
        models.thaw_backbone(self._model, finetune_from)
        return self._model

    def _open_batches(self, phase: Phase) -> Batches:
        if phase.name == "head":
            folder = Path(self._config["features"])
            return FeatureBatches(folder, hvd.rank(), hvd.size(), self._settings.seed)
        return ImageBatches(
            ray.train.get_dataset_shard("train"),
            ray.train.get_dataset_shard("val"),
            self._config["epoch"],
            hvd.rank(),
            self._settings.seed,
        )

    def _optimizer(self, phase: Phase) -> keras.optimizers.Optimizer:
        rate = schedule_of(
            phase, self._settings, steps_per_epoch=self._num_steps, num_workers=hvd.size()
        )
        accumulate = self._settings.accumulate_steps
        adam = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                rate.start if rate.warmup_steps else rate.peak,
                rate.decay_steps,
                warmup_target=rate.peak if rate.warmup_steps else None,
                warmup_steps=rate.warmup_steps,
            ),
            gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        )
        fp16 = self._settings.gradient_compression == "fp16"
        return distributed_optimizer(adam, hvd.Compression.fp16 if fp16 else hvd.Compression.none)

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
        if metrics["val_loss"] < position.best_loss:
            self._best = self._trained.get_weights()
        done = position.after(metrics["val_loss"], phase.epochs, self._settings.patience)
        if done.phase > position.phase:
            self._trained.set_weights(self._best)
        self._report(title, metrics, position, done)
        return done

    def _train_epoch(self, title: str, epoch: int) -> dict[str, float]:
        """One pass over this worker's rows; metrics over the images of all workers."""
        progress = Progress(title, self._num_train, shown=hvd.rank() == 0)
        self._trained.reset_metrics()
        batches = self._batches.train(epoch, self._batch_size)
        for step in range(self._num_steps):
            batch = next(batches, None)
            if batch is None:
                raise ShardError(
                    f"the images of worker {hvd.rank()} ended after {step} of "
                    f"{self._num_steps} steps of epoch {epoch + 1}"
                )
            self._train_step(*batch)
            progress.add(len(batch[1]))
        metrics = global_metrics(self._trained)
        average_batch_statistics(self._trained)
        check_ranks_agree(self._trained)
        return metrics

    def _validate(self) -> dict[str, float]:
        self._trained.reset_metrics()
        for batch in self._batches.val():
            self._test_step(*batch)
        return global_metrics(self._trained)

    def _report(
        self, title: str, metrics: dict[str, float], position: Position, done: Position
    ) -> None:
        """Tell MLflow, and now and then Ray Train, which keeps a checkpoint."""
        # MLflow first: a trial of a search may be ended as soon as Ray Train knows.
        if self._run is not None:
            say(_progress_line(title, metrics))
            self._run.log_metrics(metrics, step=position.epoch)
        if self._events is not None:
            self._events.add(self._phases[position.phase].name, position.epoch, metrics)
        due = time.perf_counter() - self._reported >= _REPORT_EVERY_S
        # Rank 0 decides: Ray Train wants as many reports of each worker.
        if hvd.broadcast(tf.constant(due or done.phase > position.phase), root_rank=0):
            self._reported = time.perf_counter()
            self._checkpoint(metrics, position.phase, done)

    def _checkpoint(self, metrics: dict[str, float], phase: int, done: Position) -> None:
        reported = metrics | {"epoch": done.epoch}
        if hvd.rank() > 0:
            ray.train.report(reported)
            return
        with tempfile.TemporaryDirectory() as folder, self._clear_errors():
            ray.train.report(reported, checkpoint=self._save(Path(folder), phase, done))

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            RuntimeError,
        ) as error:  # the model's own file is HDF5, which raises either
            run_id = self._config["run_id"]
            raise checkpoints.CheckpointError(
                f"the checkpoint cannot be written: {error}. The one before is kept in "
                f"{self._config['storage']}/{run_id}; go on from it with --resume {run_id}"
            ) from error

    def _save(self, folder: Path, phase: int, done: Position) -> ray.train.Checkpoint:
        checkpoints.write(folder, self._trained, self._best, phase, done)
        return ray.train.Checkpoint.from_directory(folder)

    def _restore(self, checkpoint: Any) -> Position:
        def begin(phase: int) -> keras.Model:
            self._begin(self._phases[phase])
            return self._trained

        position, self._best = checkpoints.read(checkpoint, begin)
        if hvd.rank() == 0:
            say(f"going on after epoch {position.epoch} on {hvd.size()} workers")
        return position

    def _finish(self, position: Position) -> None:
        """Give the model's files to the driver, in a last checkpoint, where it wants them."""
        ended = asdict(position) | {"finished": True}
        if self._run is None or not self._config["export"]:
            ray.train.report(ended)
            return
        with tempfile.TemporaryDirectory() as folder, self._clear_errors():
            last = self._save(Path(folder), len(self._phases) - 1, position)
            keras.config.set_dtype_policy("float32")
            model = _build(self._config, self._settings)
            model.set_weights(self._model.get_weights())
            model.save(Path(folder, checkpoints.KERAS_FILE))
            onnx = Path(folder, checkpoints.ONNX_FILE)
            models.export_onnx(model, onnx, self._config["class_names"], self._settings.alpha)
            ray.train.report(ended, checkpoint=last)


def _compiled_steps(model: keras.Model) -> tuple[Step, Step]:
    """Keras's own training and test steps, compiled once for batches of any length."""
    shape, dtype = model.input_shape[1:], model.input.dtype
    # Metrics make their variables on first use; inside a compiled step that compiles it twice.
    model.test_step((np.zeros((1, *shape), dtype), np.zeros(1, np.int64)))
    signature = [tf.TensorSpec((None, *shape), dtype), tf.TensorSpec((None,), tf.int64)]

    def train_step(batch: tf.Tensor, label: tf.Tensor) -> None:
        model.train_step((batch, label))

    def test_step(batch: tf.Tensor, label: tf.Tensor) -> None:
        model.test_step((batch, label))

    # Without AutoGraph, as Keras compiles them: it would only make tracing longer.
    compiled = partial(tf.function, input_signature=signature, autograph=False)
    return compiled(train_step), compiled(test_step)


def _progress_line(title: str, metrics: dict[str, float]) -> str:
    return (
        f"{title}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}"
        f"  val_loss {metrics['val_loss']:.4f}  val_accuracy {metrics['val_accuracy']:.4f}"
        f"  {metrics['images_per_second']:.0f} images/s  {metrics['epoch_seconds']:.1f} s"
    )
