"""From settings to a registered model: the driver's side of a training run.

Reads the data, runs the workers, exports the best epoch, evaluates the exported file, registers
it. TensorFlow is imported only once settings and cluster have been found good: it takes seconds.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
from filelock import FileLock, Timeout
from ray.data import Dataset

from mask_ray import data, evaluation, tracking
from mask_ray.config import MaskRayError, SplitName, TrainSettings, home, tracking_uri
from mask_ray.data import sources
from mask_ray.evaluation import promotion
from mask_ray.inspection.run import as_json, html, inspect
from mask_ray.models import onnx_export, pretrained
from mask_ray.models.predictor import Predictor
from mask_ray.progress import say
from mask_ray.tracking import node_metrics, provenance
from mask_ray.training import checkpoints, export, features, workers
from mask_ray.training.export import Export
from mask_ray.training.resources import ClusterError, Plan, plan_workers

_SETTINGS_FILE = "settings.json"
# What a job printed at its end, kept in its run.
RESULT_FILE = "result.json"

# What a resumed run may change: where and how it runs, not what it makes.
MAY_CHANGE = {
    "num_workers",
    "min_workers",
    "use_gpu",
    "cpus_per_worker",
    "precision",
    "gradient_compression",
    "fusion_threshold_mb",
    "cycle_time_ms",
    "timeline",
    "system_metrics",
    "tensorboard",
    "feature_cache",
    "max_failures",
    "quantize",
    "data_report",
    "robustness_images",
    "register_as",
    "promote",
    "promotion_metric",
    "promotion_margin",
    "min_recall",
    "resume",
    "from_run",
}

_FILE_LIST = "files.parquet"
_DATA_REPORT = "data_report.json"


class ResumeError(MaskRayError):
    """The run cannot be gone on with; the message says why."""


@dataclass(frozen=True)
class Pretrained:
    """A reference to the backbone's weights, and the backbone as ONNX, which makes features."""

    weights: Any
    backbone: bytes


@dataclass(frozen=True)
class Job:
    """A run that has all it needs to train.

    Args:
        tracked: The MLflow run.
        plan: The workers.
        images: What was read.
        splits: The same images, decoded, by split.
        pretrained: The backbone's weights; None where there are none.
    """

    tracked: tracking.Run
    plan: Plan
    images: data.ImageData
    splits: dict[SplitName, Dataset]
    pretrained: Pretrained | None


def train_model(settings: TrainSettings, tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Train, evaluate and register a model. Ray must be running.

    Args:
        settings: Of the run.
        tags: Set on its MLflow run, beside its own.

    Returns:
        The run's id, the model's URI and version, its image size, whether and why it is the
        champion, metrics of the test split, and seconds by stage.

    Raises:
        checkpoints.CheckpointError: a checkpoint cannot be written or read.
        MaskRayError: whatever `opened` raises.
    """
    clock = Clock()
    with opened(settings, clock, tags) as job:
        with clock.stage("train"):
            result = _train(settings, job, clock)
        # The checkpoint's own folder is left as it is.
        with result.as_directory() as folder, TemporaryDirectory() as scratch:
            with clock.stage("evaluate"):
                # Of a run that was cut off after it had registered a version, that one.
                version = job.tracked.registered_version(settings.register_as)
                if version:
                    exported = export.of_version(settings, job.images, version)
                else:
                    exported = export.choose(
                        settings, job.images, job.splits, Path(folder), Path(scratch), job.tracked
                    )
                test = _report(settings, job, exported)
            version = version or _register(settings, job, exported, Path(scratch))
        promoted, reason = _promote(settings, job, version)
        seconds = {f"seconds_{name}": value for name, value in clock.seconds().items()}
        job.tracked.log_metrics(seconds)
        told = {
            "run_id": job.tracked.run_id,
            "model_uri": f"models:/{settings.register_as}/{version}",
            "model_version": version,
            "image_size": settings.image_size,
            "promoted": promoted,
            "promotion_reason": reason,
            "test": test,
            "seconds": clock.seconds(),
        }
        job.tracked.log_json(told, RESULT_FILE)
    return told


@contextmanager
def opened(
    settings: TrainSettings, clock: "Clock", tags: Mapping[str, str] | None = None
) -> Iterator[Job]:
    """Check all that can be checked, open the run in MLflow, and read the data.

    Raises:
        data.DataError: the data set cannot be used.
        cluster.ClusterError: the cluster is too small.
        tracking.TrackingError: the tracking store does not answer, or not to all nodes.
        weights.WeightsError: the backbone weights cannot be had, or do not fit.
        ResumeError: the run to resume is finished, going on, or of other settings.
    """
    tracking.check_shared(num_nodes=sum(node["Alive"] for node in ray.nodes()))
    plan = plan_workers(settings)
    sources.check(settings.data)
    if settings.test_data is not None:
        sources.check(settings.test_data)
    pretrained = _open_pretrained(settings)
    _check_resumable(settings)
    with (
        tracking.start_run(
            settings.experiment, _tags() | dict(tags or {}), settings.resume
        ) as tracked,
        _lock(tracked),
        node_metrics.record(tracked) if settings.system_metrics else nullcontext(),
    ):
        say(f"MLflow run {tracked.run_id} in {tracking_uri()}")
        if settings.resume is None or not tracked.has_file(_SETTINGS_FILE):
            _log_settings(tracked, settings)
        with clock.stage("data"):
            images = _load(tracked, settings, plan)
            _check_enough(settings, images)
            # All now, while the processes that can do it are still warm.
            splits = {name: images.split(name) for name in data.SPLITS}
        _log_data(tracked, images)
        _tell_differences(tracked, settings)
        if settings.data_report and images.kept and not tracked.has_file(_DATA_REPORT):
            _log_inspection(tracked, settings)
        yield Job(tracked, plan, images, splits, pretrained)


def _load(tracked: tracking.Run, settings: TrainSettings, plan: Plan) -> data.ImageData:
    """The images; the run gets the list of their files."""
    with TemporaryDirectory() as folder:
        files = Path(folder, _FILE_LIST)
        images = data.load(settings, settings.image_size, task_cpus=plan.task_cpus, file_list=files)
        tracked.log_file(files)
    return images


def _tell_differences(tracked: tracking.Run, settings: TrainSettings) -> None:
    """Say, before the workers start, what is not as it was in the run that is made again."""
    if settings.from_run is None or settings.resume is not None:
        return
    differing = provenance.differences(tracking.Run(settings.from_run).tags(), tracked.tags())
    for line in differing:
        say(f"not as in run {settings.from_run}, so figures may differ: {line}")
    if not differing:
        say(f"data, code, libraries and platform are those of run {settings.from_run}")


def stored_settings(run_id: str) -> dict[str, Any]:
    """The settings of an earlier run, by field.

    Raises:
        tracking.TrackingError: there is no such run, or no settings in it.
    """
    settings: dict[str, Any] = tracking.Run(run_id).load_json(_SETTINGS_FILE)
    return settings | {"resume": None, "from_run": None}


def _check_resumable(settings: TrainSettings) -> None:
    if settings.resume is None:
        return
    run = tracking.Run(settings.resume)
    if run.status() == "FINISHED":
        raise ResumeError(f"run {run.run_id} is finished; there is nothing to resume")
    if not run.has_file(_SETTINGS_FILE):
        return  # it was cut off before it had begun
    stored = run.load_json(_SETTINGS_FILE)
    for name, value in settings.model_dump(mode="json").items():
        if name not in MAY_CHANGE and value != stored.get(name):
            raise ResumeError(
                f"{name} must be that of the resumed run, {stored.get(name)}; got {value}"
            )


@contextmanager
def _lock(tracked: tracking.Run) -> Iterator[None]:
    """Keep a second driver out of the run's checkpoints."""
    path = home() / "train" / f"{tracked.run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise ResumeError(f"run {tracked.run_id} is going on in another process") from error
    path.unlink(missing_ok=True)


def _log_settings(tracked: tracking.Run, settings: TrainSettings) -> None:
    tracked.log_params(data.params(settings))
    tracked.log_json(settings.model_dump(mode="json"), _SETTINGS_FILE)
    tracked.log_json(provenance.environment(), "environment.json")
    if patch := provenance.git_diff():
        tracked.log_text(patch, "working_tree.patch")


def _check_enough(settings: TrainSettings, images: data.ImageData) -> None:
    """Refuse a run in which a worker would have nothing to do."""
    num_train = images.summary.counts["train"].total()
    if settings.num_workers > num_train:
        raise data.DataError(
            f"num_workers must be at most the number of training images ({num_train}); "
            f"got {settings.num_workers}"
        )


class Clock:
    """Wall-clock seconds by stage and in total."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        started = time.perf_counter()
        yield
        self._stages[name] = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """What was timed, and `total` since the clock was made."""
        total = time.perf_counter() - self._started
        return {name: round(value, 2) for name, value in (self._stages | {"total": total}).items()}


def _open_pretrained(settings: TrainSettings) -> Pretrained | None:
    """The weights themselves, read here: the workers may be on other machines."""
    if settings.backbone_weights == "none":
        return None
    backbone = pretrained.read(settings.backbone_weights, settings.alpha)
    onnx = onnx_export.backbone_onnx(backbone, image_size=settings.image_size, alpha=settings.alpha)
    return Pretrained(ray.put(backbone), onnx)


def _tags() -> dict[str, str]:
    return provenance.tags() | {"ray_job_id": provenance.ray_job_id()}


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
    say(summary.report())


def _log_inspection(tracked: tracking.Run, settings: TrainSettings) -> None:
    """Only of a set that is small enough to keep: it reads every file again, twice."""
    findings = inspect(settings)
    tracked.log_text(html(settings.data, findings), "data_report.html")
    tracked.log_json(as_json(findings), _DATA_REPORT)


def _train(settings: TrainSettings, job: Job, clock: Clock) -> ray.train.Checkpoint:
    """Compute features where they are wanted and run the workers; their last checkpoint."""
    storage = home() / "train"
    config = worker_config(settings, job, storage)
    own_features = storage / f"{job.tracked.run_id}.features"
    if workers.needs_features(settings):
        with clock.stage("features"):
            config["features"] = prepare_features(settings, job, own_features)
    trainer = workers.trainer(settings, job.plan, config, job.splits)
    try:
        last = trainer.fit().checkpoint
    except ray.train.TrainingFailedError as error:
        raise _explained(error, settings, job.tracked) from error
    assert last is not None, "the workers end with a checkpoint"
    shutil.rmtree(own_features, ignore_errors=True)
    return last


def worker_config(settings: TrainSettings, job: Job, storage: Path) -> dict[str, Any]:
    """What `worker.train` is told, but for the features."""
    return {
        "settings": settings.model_dump(),
        "class_names": job.images.class_names,
        "num_train": job.images.summary.counts["train"].total(),
        "weights": job.pretrained and job.pretrained.weights,
        "features": None,
        "epoch": None,
        "run_id": job.tracked.run_id,
        "tracking_uri": tracking_uri(),
        "storage": str(storage),
        "tensorboard": str(home() / "tensorboard") if settings.tensorboard else None,
        "export": True,
        "num_threads": None,
    }


def prepare_features(settings: TrainSettings, job: Job, own_folder: Path) -> Path:
    """The folder with the features for these settings, computed if need be.

    Args:
        settings: Those of `features.prepare`.
        job: With pretrained weights.
        own_folder: Where they go when they are not to be kept, or cannot be.
    """
    assert job.pretrained is not None, "features are of a pretrained backbone"
    return features.prepare(
        settings,
        job.images,
        job.pretrained.backbone,
        own_folder=own_folder,
        num_cpus=job.plan.num_cpus,
    )


def _explained(error: Exception, settings: TrainSettings, tracked: tracking.Run) -> ClusterError:
    say(str(error))
    return ClusterError(
        f"training failed more often than max_failures ({settings.max_failures}) allows, lastly "
        f"with: {str(error).strip().splitlines()[-1]}. Its checkpoints are kept: go on with "
        f"--resume {tracked.run_id}"
    )


def _report(settings: TrainSettings, job: Job, exported: Export) -> dict[str, Any]:
    tracked, predictions = job.tracked, exported.examination.predictions
    about = {"run": tracked.run_id, "data": sources.shown(settings.data), "split": "test"}
    report = evaluation.make_report(
        exported.examination, exported.onnx, exported.predictor(), about, settings.seed
    )
    tracked.log_metrics(evaluation.flatten(report.metrics, "test_"))
    tracked.log_text(report.html, evaluation.HTML_FILE)
    tracked.log_json(report.figures, evaluation.JSON_FILE)
    tracked.log_figure(evaluation.confusion_matrix_figure(predictions), "confusion_matrix.png")
    tracked.log_figure(evaluation.roc_figure(predictions), "roc.png")
    return report.metrics


def _promote(settings: TrainSettings, job: Job, version: str) -> tuple[bool, str]:
    if not settings.promote:
        return False, "promote is off"
    images = promotion.load_held_out(settings, settings.image_size, job.images)
    decision = promotion.promote_if_better(settings.register_as, version, images, settings)
    return decision.promoted, decision.reason


def _register(settings: TrainSettings, job: Job, exported: Export, scratch: Path) -> str:
    """The new version."""
    example = job.splits["test"].take_batch(1)["image"]
    version = job.tracked.register_model(
        exported.onnx,
        name=settings.register_as,
        example=example,
        probabilities=Predictor(exported.onnx).predict(example),
        metadata={
            "class_names": job.images.class_names,
            "image_size": settings.image_size,
            "temperature": exported.temperature,
            "data_digest": job.images.summary.digest,
        }
        | exported.metadata
        | _tags(),
        keras_path=scratch / checkpoints.KERAS_FILE,
    )
    say(f"registered as version {version} of {settings.register_as}")
    return version
