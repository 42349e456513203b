"""A run with all it needs to train: its MLflow run, its images and its share of the cluster."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.data import Dataset

from mask_ray import data, tracking
from mask_ray.config import SplitName, TrainSettings, home, tracking_uri
from mask_ray.data import sources
from mask_ray.inspection.run import as_json, html, inspect
from mask_ray.models import mobilenet, pretrained
from mask_ray.progress import say
from mask_ray.tracking import node_metrics, provenance
from mask_ray.training import features
from mask_ray.training.resources import Plan, plan_workers, ray_job_id
from mask_ray.training.resume import SETTINGS_FILE, check_resumable, locked
from mask_ray.training.worker_config import WorkerConfig

_FILE_LIST = "files.parquet"
_DATA_REPORT = "data_report.json"


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


@contextmanager
def open_job(
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
    check_resumable(settings)
    with (
        tracking.start_run(
            settings.experiment, provenance_tags() | dict(tags or {}), settings.resume
        ) as tracked,
        locked(tracked),
        node_metrics.recorded(tracked) if settings.system_metrics else nullcontext(),
    ):
        say(f"MLflow run {tracked.run_id} in {tracking_uri()}")
        if settings.resume is None or not tracked.has_file(SETTINGS_FILE):
            _log_settings(tracked, settings)
        with clock.stage("data"):
            images = _load(tracked, settings, plan)
            check_enough(settings, images)
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


def _log_settings(tracked: tracking.Run, settings: TrainSettings) -> None:
    tracked.log_params(data.params(settings))
    tracked.log_json(settings.model_dump(mode="json"), SETTINGS_FILE)
    tracked.log_json(provenance.environment(), "environment.json")
    if patch := provenance.git_diff():
        tracked.log_text(patch, "working_tree.patch")


def check_enough(settings: TrainSettings, images: data.ImageData) -> None:
    """Refuse a run in which a worker would have nothing to do."""
    num_train = images.summary.counts["train"].total()
    if settings.num_workers > num_train:
        raise data.DataError(
            f"num_workers must be at most the number of training images ({num_train}); "
            f"got {settings.num_workers}"
        )


def _open_pretrained(settings: TrainSettings) -> Pretrained | None:
    """The weights themselves, read here: the workers may be on other machines."""
    if settings.backbone_weights == "none":
        return None
    backbone = pretrained.read(settings.backbone_weights, settings.alpha)
    onnx = mobilenet.backbone_onnx(backbone, image_size=settings.image_size, alpha=settings.alpha)
    return Pretrained(ray.put(backbone), onnx)


def provenance_tags() -> dict[str, str]:
    """Tags that say where a run comes from: code, libraries, platform, and its Ray job."""
    return provenance.tags() | {"ray_job_id": ray_job_id()}


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


def worker_config(settings: TrainSettings, job: Job, storage: Path) -> WorkerConfig:
    """Return what the job's workers need, without features.

    Args:
        settings: Settings of the run.
        job: The run, with its images.
        storage: Folder on shared storage for checkpoints.
    """
    return WorkerConfig(
        settings=settings,
        class_names=job.images.class_names,
        num_train=job.images.summary.counts["train"].total(),
        run_id=job.tracked.run_id,
        tracking_uri=tracking_uri(),
        storage=storage,
        weights=job.pretrained and job.pretrained.weights,
        tensorboard=home() / "tensorboard" if settings.tensorboard else None,
    )


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
