"""Run a training from settings to a registered model: the driver's side.

Reads the data, runs the workers, exports the best epoch, evaluates the exported file and registers
it. Importing TensorFlow takes seconds, so this side does without it.
"""

import shutil
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train

from mask_ray import evaluation
from mask_ray.config import MaskRayError, TrainSettings, home
from mask_ray.data import sources
from mask_ray.evaluation import grounds, promotion
from mask_ray.files import is_full, make_private
from mask_ray.models.predictor import Predictor
from mask_ray.progress import note, say
from mask_ray.training import checkpoints, export, workers
from mask_ray.training.export import Export
from mask_ray.training.job import (
    Clock,
    Job,
    open_job,
    prepare_features,
    provenance_tags,
    worker_config,
)
from mask_ray.training.resources import ClusterError

# Artifact of the run: the result that the job prints.
RESULT_FILE = "result.json"


def train_model(settings: TrainSettings, tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Train, evaluate and register a model. Ray must be running.

    Args:
        settings: Settings of the run.
        tags: Further tags of its MLflow run.

    Returns:
        The run's id, the model's URI and version, its image size, whether it became the champion
        and why, metrics of the test split, and seconds by stage.

    Raises:
        checkpoints.CheckpointError: a checkpoint cannot be written or read.
        MaskRayError: see `open_job`.
    """
    clock = Clock()
    with open_job(settings, clock, tags) as job:
        with clock.stage("train"):
            checkpoint = _train(settings, job, clock)
        # The checkpoint stays unchanged: files go into a scratch folder.
        with checkpoint.as_directory() as folder, TemporaryDirectory() as scratch:
            with clock.stage("evaluate"):
                # An interrupted run may have registered its version already.
                version = job.tracked.registered_version(settings.register_as)
                if version:
                    exported = export.of_version(settings, job.images, version)
                else:
                    exported = export.choose(
                        settings, job.images, job.splits, Path(folder), Path(scratch), job.tracked
                    )
                _say_what_is_missed(settings, exported)
                say("writing the evaluation report")
                test = _report(settings, job, exported)
            version = version or _register(settings, job, exported, Path(scratch))
        promoted, reason = _promote(settings, job, version)
        seconds = {f"seconds_{name}": value for name, value in clock.seconds().items()}
        job.tracked.log_metrics(seconds)
        result = {
            "run_id": job.tracked.run_id,
            "model_uri": f"models:/{settings.register_as}/{version}",
            "model_version": version,
            "image_size": settings.image_size,
            "promoted": promoted,
            "promotion_reason": reason,
            "test": test,
            "seconds": clock.seconds(),
        }
        job.tracked.log_json(result, RESULT_FILE)
    return result


def _train(settings: TrainSettings, job: Job, clock: Clock) -> ray.train.Checkpoint:
    """Compute features if a head is trained, run the workers, and return the last checkpoint."""
    storage = make_private(home() / "train")
    config = worker_config(settings, job, storage)
    own_features = storage / f"{job.tracked.run_id}.features"
    if workers.needs_features(settings):
        with clock.stage("features"):
            found = prepare_features(settings, job, own_features)
        config = replace(config, features=found)
    trainer = workers.trainer(job.plan, config, job.splits)
    try:
        last = trainer.fit().checkpoint
    except ray.train.TrainingFailedError as error:
        note(str(error))
        raise ClusterError(
            f"training failed more than --max-failures ({settings.max_failures}) times. Last "
            f"error: {str(error).strip().splitlines()[-1]}. Its checkpoints are kept: resume with "
            f"--resume {job.tracked.run_id}"
        ) from error
    assert last is not None, "the workers' last report has a checkpoint"
    shutil.rmtree(own_features, ignore_errors=True)
    return last


def _say_what_is_missed(settings: TrainSettings, exported: Export) -> None:
    missed = evaluation.unrecognised(exported.examination.predictions)
    if missed:
        weighted = settings.class_weights == "balanced"
        advice = "" if weighted else ", or try --class-weights balanced"
        say(f"{missed}: add images of such classes, train longer{advice}")


def _report(settings: TrainSettings, job: Job, exported: Export) -> dict[str, Any]:
    """Log a report on the test split, and return its metrics.

    What goes wrong in a report must not lose the model that it is about.
    """
    try:
        return _log_report(settings, job, exported)
    except Exception as error:
        if isinstance(error, MaskRayError) or is_full(error):
            raise
        note(traceback.format_exc())
        say(
            f"the run has no complete report, since making it failed: {type(error).__name__}: "
            f"{error}"
        )
        return evaluation.compute_metrics(exported.examination.predictions)


def _log_report(settings: TrainSettings, job: Job, exported: Export) -> dict[str, Any]:
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
    say("comparing the version with the champion, if there is one")
    images = grounds.load_held_out(settings, settings.image_size, job.images)
    decision = promotion.promote_if_better(settings.register_as, version, images, settings)
    return decision.promoted, decision.reason


def _register(settings: TrainSettings, job: Job, exported: Export, scratch: Path) -> str:
    """Register the exported model; return its version."""
    say("registering the model")
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
        | provenance_tags(),
        keras_path=scratch / checkpoints.KERAS_FILE,
    )
    say(f"registered as version {version} of {settings.register_as}")
    return version
