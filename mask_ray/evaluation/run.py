"""The evaluation job: compute metrics of a model on labelled images, and write a report."""

import os
from pathlib import Path
from typing import Any

from mask_ray import data, tracking
from mask_ray.config import EvaluateSettings, SplitName
from mask_ray.data import sources
from mask_ray.evaluation import report
from mask_ray.evaluation.examination import examine
from mask_ray.evaluation.metrics import unrecognised
from mask_ray.models.predictor import Predictor
from mask_ray.progress import say


def evaluate_model(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate a model on labelled images; write a report if `output` is set. Ray must be running.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        ModelFileError: the file is not a classifier.
        data.DataError: the data cannot be used, or its classes are not the model's.
    """
    # Robustness appears only in the report.
    needed = settings if settings.output else settings.model_copy(update={"robustness_images": 0})
    made, model = evaluate(needed)
    if settings.output is not None:
        folder = Path(settings.output).expanduser()
        made.write(folder)
        say(f"report in {folder / report.HTML_FILE}")
    identity = {"name": model.name, "version": model.version}
    return {"model": identity, "split": settings.split} | made.metrics


def evaluate(settings: EvaluateSettings) -> tuple[report.Report, tracking.ResolvedModel]:
    """Return a report and the model that it is about. Raises the errors of `evaluate_model`."""
    resolved = tracking.resolve_model(settings.model_uri)
    predictor = Predictor(resolved.path, num_threads=os.cpu_count() or 1)
    splits = data.SPLITS if settings.split == "all" else (settings.split,)
    images = data.load(settings, predictor.image_size, needed=())
    if images.class_names != list(predictor.class_names):
        raise data.DataError(
            f"data must have the model's classes, {', '.join(predictor.class_names)}; "
            f"got {', '.join(images.class_names)}"
        )
    if settings.split != "all":
        say(_about_split(settings.split, images, _trained_on(resolved)))
    examination = examine(images.named(*splits), predictor, settings.robustness_images)
    if missed := unrecognised(examination.predictions):
        say(missed)
    about = _about(resolved, settings)
    return report.make(examination, resolved.path, predictor, about, settings.seed), resolved


def _trained_on(model: tracking.ResolvedModel) -> str | None:
    """Return the digest of the data that a registered version was trained on; None if unknown."""
    if model.version is None:
        return None
    try:
        run_id = tracking.RegisteredModel(model.name).run_id_of(model.version)
        return tracking.Run(run_id).tags().get("data_digest")
    except tracking.TrackingError:  # the run was deleted
        return None


def _about_split(split: SplitName, images: data.ImageData, trained_on: str | None) -> str:
    """Say how many of the images count, and how to count all of a set that was not trained on."""
    counts = images.summary.counts
    line = (
        f"evaluating the {split} split: {counts[split].total()} of "
        f"{images.summary.num_images} images"
    )
    if trained_on == images.summary.digest:
        return line
    if trained_on is None:
        return f"{line}; --split all counts every image, for data that the model never saw"
    return f"{line}. The model was trained on other data: --split all counts every image"


def _about(model: tracking.ResolvedModel, settings: EvaluateSettings) -> dict[str, str]:
    version = f" version {model.version}" if model.version else ""
    source = sources.shown(settings.data)
    return {"model": model.name + version, "data": source, "split": settings.split}
