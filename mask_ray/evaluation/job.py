"""The evaluation of one model on one data set, from settings to figures and a report."""

import json
import os
from pathlib import Path
from typing import Any

from mask_ray import data, tracking
from mask_ray.config import EvaluateSettings, MaskRayError
from mask_ray.evaluation.examination import examine
from mask_ray.evaluation.report import Report, html, report
from mask_ray.predictor import Predictor
from mask_ray.progress import say

_HTML, _JSON = "evaluation.html", "evaluation.json"


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate the model of `settings` on its data. Ray must be running.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        ModelFileError: the file is not a classifier.
        data.DataError: the data cannot be used, or its classes are not the model's.
        MaskRayError: the report cannot be written.
    """
    made = evaluate(settings)
    if settings.output is not None:
        _write(made, settings.output)
    model = {key: made.figures["model"][key] for key in ("name", "version")}
    return {"model": model, "split": settings.split} | made.figures["metrics"]


def evaluate(settings: EvaluateSettings) -> Report:
    """The report itself. As `run`."""
    resolved = tracking.resolve_model(settings.model_uri)
    predictor = Predictor(resolved.path, num_threads=os.cpu_count() or 1)
    splits = data.SPLITS if settings.split == "all" else (settings.split,)
    images = data.load(settings, predictor.image_size, needed=())
    if images.class_names != list(predictor.class_names):
        raise data.DataError(
            f"data must have the model's classes, {', '.join(predictor.class_names)}; "
            f"got {', '.join(images.class_names)}"
        )
    examined = examine(images.examples(*splits), predictor, settings.robustness_images)
    model = {"name": resolved.name, "version": resolved.version, "split": settings.split}
    return report(examined, resolved.path, model | {"temperature": predictor.temperature})


def log(made: Report, run: tracking.Run) -> None:
    """Keep the report with a run."""
    run.log_text(html(made), _HTML)
    run.log_json(made.figures, _JSON)


def _write(made: Report, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _HTML).write_text(html(made))
        (folder / _JSON).write_text(json.dumps(made.figures, indent=2))
    except OSError as error:
        raise MaskRayError(f"output cannot be written: {error}") from error
    say(f"report: {(folder / _HTML).absolute()}")
