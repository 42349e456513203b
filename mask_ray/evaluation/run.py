"""The evaluation job: compute metrics of a model on labelled images, and write a report."""

import os
from pathlib import Path
from typing import Any

from mask_ray import data, tracking
from mask_ray.config import EvaluateSettings
from mask_ray.data import sources
from mask_ray.evaluation import report
from mask_ray.evaluation.examination import examine
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
    examination = examine(images.named(*splits), predictor, settings.robustness_images)
    about = _about(resolved, settings)
    return report.make(examination, resolved.path, predictor, about, settings.seed), resolved


def _about(model: tracking.ResolvedModel, settings: EvaluateSettings) -> dict[str, str]:
    version = f" version {model.version}" if model.version else ""
    source = sources.shown(settings.data)
    return {"model": model.name + version, "data": source, "split": settings.split}
