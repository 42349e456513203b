"""The evaluation job: a model file and labelled images -> metrics, and a report if wanted."""

import os
from pathlib import Path
from typing import Any

from mask_ray import data, tracking
from mask_ray.config import EvaluateSettings
from mask_ray.evaluation import report
from mask_ray.evaluation.examination import examine
from mask_ray.predictor import Predictor
from mask_ray.progress import say


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate the model of `settings` on its data. Ray must be running.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        ModelFileError: the file is not a classifier.
        data.DataError: the data cannot be used, or its classes are not the model's.
    """
    resolved = tracking.resolve_model(settings.model_uri)
    predictor = Predictor(resolved.path, num_threads=os.cpu_count() or 1)
    splits = data.SPLITS if settings.split == "all" else (settings.split,)
    images = data.load(settings, predictor.image_size, needed=())
    if images.class_names != list(predictor.class_names):
        raise data.DataError(
            f"data must have the model's classes, {', '.join(predictor.class_names)}; "
            f"got {', '.join(images.class_names)}"
        )
    # What only the report tells is left out where nobody wants one.
    num_sampled = settings.robustness_images if settings.output else 0
    examination = examine(images.named(*splits), predictor, num_sampled)
    about = _about(resolved, settings)
    made = report.make(examination, resolved.path, predictor, about, settings.seed)
    if settings.output is not None:
        folder = Path(settings.output).expanduser()
        made.write(folder)
        say(f"report in {folder / report.HTML_FILE}")
    model = {"name": resolved.name, "version": resolved.version}
    return {"model": model, "split": settings.split} | made.metrics


def _about(model: tracking.ResolvedModel, settings: EvaluateSettings) -> dict[str, str]:
    version = f" version {model.version}" if model.version else ""
    return {"model": model.name + version, "data": settings.data, "split": settings.split}
