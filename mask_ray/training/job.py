"""Open a run: its MLflow run, its images and its share of the cluster."""

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
from mask_ray.config import SplitName, TrainSettings, TuneSettings, home, tracking_uri
from mask_ray.data import sources
from mask_ray.data.file_list import FILE_LIST
from mask_ray.evaluation import grounds
from mask_ray.files import check_home, make_private
from mask_ray.inspection.run import as_json, html, inspect
from mask_ray.models import onnx_export, pretrained
from mask_ray.progress import say
from mask_ray.tracking import node_metrics, provenance
from mask_ray.training import features
from mask_ray.training.class_weights import balanced, few_held_out, imbalance
from mask_ray.training.resources import Plan, plan_workers, reserved
from mask_ray.training.resume import SETTINGS_FILE, check_resumable, locked, saying_how
from mask_ray.training.worker_config import WorkerConfig

# MLflow's page cuts longer tags. All names are in the model's metadata.
_TAG_LENGTH = 250

_DATA_REPORT = "data_report.json"


@dataclass(frozen=True)
class Pretrained:
    """The backbone's pretrained weights.

    Args:
        weights: Reference to the weights in Ray's object store.
        backbone: ONNX file of the backbone, which computes features.
    """

    weights: Any
    backbone: bytes


@dataclass(frozen=True)
class Job:
    """An open run, ready to train.

    Args:
        tracked: The MLflow run.
        plan: Number and resources of the workers.
        images: Images of all splits.
        splits: The same images, decoded, by split.
        pretrained: Weights of the backbone; None to train from scratch.
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
        """Time the body of the `with` statement."""
        started = time.perf_counter()
        yield
        self._stages[name] = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Return seconds by stage, and `total` since the clock was made."""
        total = time.perf_counter() - self._started
        return {name: round(value, 2) for name, value in (self._stages | {"total": total}).items()}


@contextmanager
def open_job(
    settings: TrainSettings,
    clock: Clock,
    tags: Mapping[str, str] | None = None,
    num_trials: int = 1,
) -> Iterator[Job]:
    """Check settings, reserve CPUs and GPUs, open the run in MLflow, and read the data.

    Args:
        settings: Settings of the run.
        clock: Gets the seconds of the stage `data`.
        tags: Further tags of the MLflow run.
        num_trials: Trials that run at a time.

    Raises:
        MaskRayError: MASK_RAY_HOME cannot be written.
        data.DataError: the data set cannot be used.
        resources.ClusterError: the cluster is too small.
        tracking.TrackingError: the tracking store does not answer, or some nodes cannot use it.
        pretrained.WeightsError: the backbone weights cannot be read, or do not fit.
        resume.ResumeError: the run to resume is finished, active, or has other settings.
    """
    check_home()
    tracking.check_shared(num_nodes=sum(node["Alive"] for node in ray.nodes()))
    planned = plan_workers(settings, num_trials)
    _check_sources(settings)
    pretrained = _open_pretrained(settings)
    check_resumable(settings)
    with (
        reserved(planned) as plan,
        tracking.start_run(
            settings.experiment, _tags_of(settings) | dict(tags or {}), settings.resume
        ) as tracked,
        locked(tracked),
        node_metrics.record(tracked) if settings.system_metrics else nullcontext(),
    ):
        say(f"MLflow run {tracked.run_id} in {tracking_uri()}")
        if settings.resume is None or not tracked.has_file(SETTINGS_FILE):
            _log_settings(tracked, settings)
        with saying_how(_module(settings), tracked):
            with clock.stage("data"):
                images, splits = _read(tracked, settings, plan)
            yield Job(tracked, plan, images, splits, pretrained)


def _read(
    tracked: tracking.Run, settings: TrainSettings, plan: Plan
) -> tuple[data.ImageData, dict[SplitName, Dataset]]:
    """Read the images, decode all splits, and say what they hold."""
    images = _load(tracked, settings, plan)
    check_enough(settings, images)
    # Decode all splits now, while the processes that decode are still warm.
    splits = {name: images.split(name) for name in data.SPLITS}
    _log_data(tracked, settings, images)
    is_weighted = settings.class_weights == "balanced"
    if unequal := imbalance(images.summary.counts["train"], is_weighted):
        say(unequal)
    if few := few_held_out(images.summary.counts, settings.test_data is not None):
        say(few)
    _say_what_differs(tracked, settings)
    if settings.data_report and images.kept and not tracked.has_file(_DATA_REPORT):
        _log_inspection(tracked, settings)
    return images, splits


def _module(settings: TrainSettings) -> str:
    return "jobs.tune" if isinstance(settings, TuneSettings) else "jobs.train"


def _tags_of(settings: TrainSettings) -> dict[str, str]:
    """Return the tags of a run's origin, and those by which MLflow's page lists it.

    A resumed run keeps its name.
    """
    own = provenance_tags()
    if settings.resume is not None:
        return own
    kind = "search " if isinstance(settings, TuneSettings) else ""
    # MLflow's list shows about 23 characters of a name, and the full time beside it.
    name = f"{kind}{sources.title(settings.data)} {time.strftime('%m-%d %H:%M')}"
    source = f"python -m {_module(settings)}"
    return own | tracking.overview_tags(name, source, own["git_commit"].removesuffix("-dirty"))


def _load(tracked: tracking.Run, settings: TrainSettings, plan: Plan) -> data.ImageData:
    """Read the images and log the list of their files."""
    with TemporaryDirectory() as folder:
        files = Path(folder, FILE_LIST)
        images = data.load(settings, settings.image_size, task_cpus=plan.task_cpus, file_list=files)
        tracked.log_file(files)
    return images


def _say_what_differs(tracked: tracking.Run, settings: TrainSettings) -> None:
    """Print what differs from the run that `from_run` repeats, before the workers start."""
    if settings.from_run is None or settings.resume is not None:
        return
    differing = provenance.differences(tracking.Run(settings.from_run).tags(), tracked.tags())
    for line in differing:
        say(f"figures may differ from run {settings.from_run}: {line}")
    if not differing:
        say(f"data, code, libraries and platform are those of run {settings.from_run}")


def _log_settings(tracked: tracking.Run, settings: TrainSettings) -> None:
    tracked.log_params(data.params(settings))
    tracked.log_json(settings.model_dump(mode="json"), SETTINGS_FILE)
    tracked.log_json(provenance.environment(), "environment.json")
    if patch := provenance.shareable_diff():
        tracked.log_text(patch, "working_tree.patch")


def check_enough(settings: TrainSettings, images: data.ImageData) -> None:
    """Reject a run with more workers than training images.

    Raises:
        data.DataError: a worker would have no image.
    """
    num_train = images.summary.counts["train"].total()
    if settings.num_workers > num_train:
        raise data.DataError(
            f"num_workers must be at most the number of training images ({num_train}); "
            f"got {settings.num_workers}"
        )


def _open_pretrained(settings: TrainSettings) -> Pretrained | None:
    """Read the weights here, since the workers may be on other machines."""
    if settings.backbone_weights == "none":
        return None
    backbone = pretrained.read(settings.backbone_weights, settings.alpha)
    onnx = onnx_export.backbone_onnx(backbone, image_size=settings.image_size, alpha=settings.alpha)
    return Pretrained(ray.put(backbone), onnx)


def provenance_tags() -> dict[str, str]:
    """Return tags of a run's origin: code, libraries, platform, and its Ray job."""
    return provenance.tags() | {"ray_job_id": provenance.ray_job_id()}


def _check_sources(settings: TrainSettings) -> None:
    """Check all sources before anything is read."""
    sources.check(settings.data)
    if settings.test_data is not None:
        sources.check(settings.test_data)
    if settings.reference_data is not None:
        grounds.rememberable(settings.reference_data)
        sources.check(settings.reference_data)


def _describe_data(tracked: tracking.Run, settings: TrainSettings, images: data.ImageData) -> None:
    """Fill in the description and the data set of the run, as MLflow's page shows them."""
    summary, shown = images.summary, sources.shown(settings.data)
    sizes = {split: counts.total() for split, counts in summary.counts.items()}
    tracked.log_dataset(sources.title(settings.data), summary.digest, shown, {"num_images": sizes})
    in_words = ", ".join(f"{split} {size}" for split, size in sizes.items())
    tracked.describe(
        f"{len(images.class_names)} classes, {summary.num_images} images ({in_words}) of\n\n"
        + "\n".join(f"- `{source}`" for source in sources.several(shown))
    )


def _log_data(tracked: tracking.Run, settings: TrainSettings, images: data.ImageData) -> None:
    summary = images.summary
    tracked.set_tags({"data_digest": summary.digest})
    if len(names := json.dumps(images.class_names)) <= _TAG_LENGTH:
        tracked.set_tags({"class_names": names})
    _describe_data(tracked, settings, images)
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
    """Inspect the data and log the report, which reads every file again, twice."""
    findings = inspect(settings, image_size=settings.image_size)
    tracked.log_text(html(settings.data, findings), "data_report.html")
    tracked.log_json(as_json(findings), _DATA_REPORT)


def worker_config(settings: TrainSettings, job: Job, storage: Path) -> WorkerConfig:
    """Return what the job's workers need, without features.

    Args:
        settings: Settings of the run.
        job: The run, with its images.
        storage: Folder on shared storage for checkpoints.
    """
    class_names, counts = job.images.class_names, job.images.summary.counts["train"]
    is_balanced = settings.class_weights == "balanced"
    weights = balanced(counts, class_names) if is_balanced else None
    return WorkerConfig(
        settings=settings,
        class_names=class_names,
        num_train=counts.total(),
        run_id=job.tracked.run_id,
        tracking_uri=tracking_uri().full,
        storage=storage,
        weights=job.pretrained and job.pretrained.weights,
        tensorboard=make_private(home() / "tensorboard") if settings.tensorboard else None,
        class_weights=weights,
    )


def prepare_features(settings: TrainSettings, job: Job, own_folder: Path) -> Path:
    """Find or compute the features for these settings; return their folder.

    Args:
        settings: Settings of the run, see `features.prepare`.
        job: A job with pretrained weights.
        own_folder: Folder of this run, used when the cache is off or cannot be written.
    """
    assert job.pretrained is not None, "features need a pretrained backbone"
    return features.prepare(
        settings,
        job.images,
        job.pretrained.backbone,
        own_folder=own_folder,
        num_cpus=job.plan.num_cpus,
    )
