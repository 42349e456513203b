"""From settings to a registered model: the driver's side of a training run.

Reads the data, runs the workers, exports the best epoch, evaluates the exported file, registers
it. TensorFlow is imported only once settings and cluster have been found good: it takes seconds.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from numpy.typing import NDArray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import state as cluster_state
from ray.data import Dataset
from ray.train.v2._internal.constants import is_v2_enabled

from mask_ray import data, evaluation, tracking
from mask_ray.config import MaskRayError, SplitName, TrainSettings, home, tracking_uri
from mask_ray.predictor import Predictor

# Of the validation split; accuracy would tie between epochs where the split is small.
_SCORE = "val_loss"

# V1 would reserve a CPU for itself; V2 refuses to be told.
_V1_ONLY: dict[str, Any] = {} if is_v2_enabled() else {"trainer_resources": {"CPU": 0}}


class ClusterError(MaskRayError):
    """The cluster cannot hold the run; the message says what it has and what was asked."""


@dataclass(frozen=True)
class ModelFiles:
    """A trained model, exported."""

    onnx: Path
    keras: Path


def run(settings: TrainSettings) -> dict[str, Any]:
    """Train, evaluate and register a model. Ray must be running.

    Returns:
        The run's id, the model's URI and version, its image size, metrics of the test split, and
        seconds by stage.

    Raises:
        data.DataError: the data set cannot be used.
        ClusterError: the cluster is too small.
        tracking.TrackingError: the tracking store would not be shared by the nodes.
        model.WeightsError: the backbone weights cannot be had.
    """
    tracking.check_shared(num_nodes=sum(node["Alive"] for node in ray.nodes()))
    scaling = plan_workers(settings)
    if not data.is_synthetic(settings.data):
        data.check_folder(settings.data)
    weights = _read_backbone_weights(settings)
    clock = _Clock()
    with (
        tempfile.TemporaryDirectory() as folder,
        tracking.start_run(settings.experiment, _tags()) as tracked,
    ):
        print(f"MLflow run {tracked.run_id} in {tracking_uri()}", flush=True)
        tracked.log_params(settings.model_dump())
        with clock.stage("data"):
            images = data.load(settings, settings.image_size)
            # All now, while the processes that can do it are still warm.
            splits = {name: images.split(name) for name in data.SPLITS}
        _log_data(tracked, images)
        with clock.stage("train"):
            best = _fit(settings, images, splits, weights, scaling, tracked.run_id)
        files = _export(settings, images, best, Path(folder))
        with clock.stage("evaluate"):
            test = _evaluate(tracked, splits["test"], files.onnx)
        version = _register(settings, tracked, images, splits["test"], files)
        tracked.log_metrics({f"seconds_{name}": value for name, value in clock.seconds().items()})
    return {
        "run_id": tracked.run_id,
        "model_uri": f"models:/{settings.register_as}/{version}",
        "model_version": version,
        "image_size": settings.image_size,
        "test": test,
        "seconds": clock.seconds(),
    }


class _Clock:
    """Wall-clock seconds by stage and in total."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._stages[name] = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self._started
        return {name: round(value, 2) for name, value in (self._stages | {"total": total}).items()}


def plan_workers(settings: TrainSettings) -> ray.train.ScalingConfig:
    """The workers' number and resources, leaving Ray Data what it needs to feed them.

    Raises:
        ClusterError: the cluster cannot hold that many workers.
    """
    most = cluster_state.get_max_resources_from_cluster_config() or ray.cluster_resources()
    resource = "GPU" if settings.use_gpu else "CPU"
    if settings.num_workers > most.get(resource, 0):
        raise ClusterError(
            f"num_workers must be at most the cluster's {resource}s "
            f"({most.get(resource, 0):g}); got {settings.num_workers}"
        )
    cpus = settings.cpus_per_worker or _cpus_per_worker(settings)
    if most["CPU"] - cpus * settings.num_workers < data.TASK_CPUS:
        raise ClusterError(
            f"cpus_per_worker times num_workers must leave {data.TASK_CPUS} of the cluster's "
            f"{most['CPU']:g} CPUs for Ray Data; got {cpus:g} times {settings.num_workers}"
        )
    num_workers: Any = settings.num_workers
    if settings.min_workers not in (None, settings.num_workers):
        num_workers = (settings.min_workers, settings.num_workers)
    return ray.train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=settings.use_gpu,
        resources_per_worker={"CPU": cpus} | ({"GPU": 1} if settings.use_gpu else {}),
        **_V1_ONLY,
    )


def _cpus_per_worker(settings: TrainSettings) -> float:
    """An equal share of the free CPUs, less one for Ray Data: whole ones where there are enough.

    Raises:
        ClusterError: other work holds nearly every CPU.
    """
    if cluster_state.get_max_resources_from_cluster_config():
        return 1  # the cluster grows on demand; what is free now says little
    nodes = cluster_state.available_resources_per_node().values()
    free = [n.get("CPU", 0) for n in nodes if n.get("GPU", 0) >= 1 or not settings.use_gpu]
    share = largest_share(free, settings.num_workers)
    if share < 0.01:
        raise ClusterError(
            f"the cluster has {sum(free):g} free CPUs, too few for {settings.num_workers} workers "
            "and Ray Data; wait for other jobs, or stop them"
        )
    return math.floor(share) if share >= 1 else math.floor(share * 100) / 100


def largest_share(free: list[float], num_workers: int) -> float:
    """The most CPUs that each of `num_workers` can have, none spread over two nodes.

    Args:
        free: CPUs free on each node. One of them, or half where there is less, is left to
            Ray Data.
        num_workers: Workers to place.
    """
    free = sorted(free, reverse=True)
    if not free:
        return 0.0
    free[0] -= min(1, sum(free) / 2)
    shares = {cpus / count for cpus in free for count in range(1, num_workers + 1) if cpus > 0}
    for share in sorted(shares, reverse=True):
        if sum(math.floor(cpus / share + 1e-9) for cpus in free) >= num_workers:
            return share
    return 0.0


def _read_backbone_weights(settings: TrainSettings) -> list[NDArray[np.float32]] | None:
    """The weights themselves, read here: the workers may be on other machines."""
    if settings.backbone_weights == "none":
        return None
    from mask_ray import model

    return model.read_backbone_weights(settings.backbone_weights, settings.alpha)


def _tags() -> dict[str, str]:
    return {"git_commit": tracking.git_commit(), "ray_job_id": ray_job_id()}


def ray_job_id() -> str:
    """The submission id that `ray job` commands take, or the driver's own id outside a job."""
    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    own: str = ray.get_runtime_context().get_job_id()
    return str(submitted.get("metadata", {}).get("job_submission_id", own))


def _log_data(tracked: tracking.Run, images: data.ImageData) -> None:
    summary = images.summary
    tracked.set_tags({"data_digest": summary.digest, "class_names": json.dumps(images.class_names)})
    tracked.log_metrics(
        {"num_bad_files": len(summary.bad_files)}
        | {
            f"num_images_{split}_{class_name}": count
            for split, counts in summary.counts.items()
            for class_name, count in counts.items()
        }
    )
    tracked.log_json(summary.bad_files, "bad_files.json")
    print(summary.report(), flush=True)


def _fit(
    settings: TrainSettings,
    images: data.ImageData,
    splits: dict[SplitName, Dataset],
    weights: list[NDArray[np.float32]] | None,
    scaling: ray.train.ScalingConfig,
    run_id: str,
) -> ray.train.Checkpoint:
    """Run the workers; the checkpoint of the epoch with the lowest validation loss."""
    from mask_ray.horovod import HorovodTrainer

    # Defined here, it travels by value: the workers then import what training needs, not what
    # this module needs.
    def train_worker(config: dict[str, Any]) -> None:
        import os

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from mask_ray.worker import train

        train(config)

    num_train = images.summary.counts["train"].total()
    trainer = HorovodTrainer(
        train_worker,
        train_loop_config={
            "settings": settings.model_dump(),
            "num_classes": len(images.class_names),
            "num_train": num_train,
            "weights_ref": None if weights is None else ray.put(weights),
            "run_id": run_id,
            "tracking_uri": tracking_uri(),
        },
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=str(home() / "train"),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=_SCORE, checkpoint_score_order="min"
            ),
        ),
        datasets={"train": splits["train"], "val": splits["val"]},
        dataset_config=data.ShardConfig(),
    )
    result = trainer.fit()
    best = result.get_best_checkpoint(_SCORE, "min")
    assert best is not None, "every epoch reports a checkpoint"
    return best


def _export(
    settings: TrainSettings, images: data.ImageData, best: ray.train.Checkpoint, folder: Path
) -> ModelFiles:
    from mask_ray import model

    trained = model.build(
        num_classes=len(images.class_names),
        image_size=settings.image_size,
        alpha=settings.alpha,
        from_scratch=settings.backbone_weights == "none",
    )
    with best.as_directory() as checkpoint:
        trained.load_weights(Path(checkpoint, model.WEIGHTS_FILE))
    files = ModelFiles(folder / "model.onnx", folder / "model.keras")
    model.export_onnx(trained, files.onnx, images.class_names)
    model.inference_model(trained).save(files.keras)
    return files


def _evaluate(tracked: tracking.Run, test_images: Dataset, onnx: Path) -> dict[str, Any]:
    predictor = Predictor(onnx, num_threads=os.cpu_count() or 1)
    predictions = evaluation.predict(test_images, predictor)
    metrics = evaluation.metrics(predictions)
    tracked.log_metrics(evaluation.flatten(metrics, "test_"))
    tracked.log_figure(evaluation.confusion_matrix_figure(predictions), "confusion_matrix.png")
    tracked.log_figure(evaluation.roc_figure(predictions), "roc.png")
    return metrics


def _register(
    settings: TrainSettings,
    tracked: tracking.Run,
    images: data.ImageData,
    test_images: Dataset,
    files: ModelFiles,
) -> str:
    example = test_images.take_batch(1)["image"]
    return tracked.register_model(
        files.onnx,
        name=settings.register_as,
        example=example,
        probabilities=Predictor(files.onnx).predict(example),
        metadata={
            "class_names": images.class_names,
            "image_size": settings.image_size,
            "data_digest": images.summary.digest,
        }
        | _tags(),
        keras_path=files.keras,
    )
