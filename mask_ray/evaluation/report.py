"""Put all figures about a model into a report: JSON and one HTML page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from mask_ray import reports
from mask_ray.evaluation import charts, heat_maps, slices
from mask_ray.evaluation.calibration import NUM_BINS, expected_calibration_error, reliability
from mask_ray.evaluation.curves import curves, thresholds
from mask_ray.evaluation.examination import Answer, Examination
from mask_ray.evaluation.intervals import intervals
from mask_ray.evaluation.metrics import compute_metrics
from mask_ray.evaluation.robustness import accuracy_under_corruption
from mask_ray.models.predictor import Predictor
from mask_ray.reports import data_uri, jpeg

HTML_FILE = "evaluation.html"
JSON_FILE = "evaluation.json"


@dataclass(frozen=True)
class Report:
    """Figures about a model, and the page that shows them.

    Args:
        figures: All figures, as JSON values.
        html: The page.
    """

    figures: dict[str, Any]
    html: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of `compute_metrics`, the calibration error, and intervals of both."""
        names = ("num_images", "accuracy", "log_loss", "roc_auc", "precision", "recall", "f1")
        more = ("expected_calibration_error", "temperature", "intervals")
        return {name: self.figures[name] for name in names + more}

    def write(self, folder: Path) -> None:
        """Write the page and the figures, as `HTML_FILE` and `JSON_FILE`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HTML_FILE).write_text(self.html, "utf-8")
        (folder / JSON_FILE).write_text(json.dumps(self.figures, indent=2), "utf-8")


def make(
    examination: Examination,
    onnx: Path,
    predictor: Predictor,
    about: Mapping[str, str],
    seed: int = 0,
) -> Report:
    """Compute all figures and render the page.

    Args:
        examination: Predictions and traits of the images.
        onnx: Model file.
        predictor: Predictor of that file.
        about: Names and values for the head of the page, such as model and data.
        seed: Seed of resamples and corruptions.
    """
    figures = {"about": dict(about)} | _figures(examination, predictor, seed)
    names = figures["class_names"]
    page = reports.render(
        "evaluation.html.j2",
        title="Evaluation",
        subtitle=" · ".join(f"{name} {value}" for name, value in about.items()),
        figures=figures,
        num_bins=NUM_BINS,
        charts=_charts(figures),
        mistakes=_pictures(examination.mistakes, onnx, names),
        doubts=_pictures(examination.doubts, onnx, names),
    )
    return Report(figures, page)


def _figures(examination: Examination, predictor: Predictor, seed: int) -> dict[str, Any]:
    predictions = examination.predictions
    names = predictions.class_names
    counts = confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(names)))
    return compute_metrics(predictions) | {
        "class_names": names,
        "num_mistakes": int((predictions.labels != predictions.predicted).sum()),
        "expected_calibration_error": expected_calibration_error(predictions),
        "temperature": predictor.temperature,
        "intervals": intervals(predictions, seed),
        "confusion": counts.tolist(),
        "reliability": reliability(predictions),
        "thresholds": thresholds(predictions),
        "curves": curves(predictions),
        "slices": slices.as_json(slices.by_trait(predictions, examination.traits)),
        "robustness": _robustness(examination, predictor, seed),
        "mistakes": [_answer_as_json(answer, names) for answer in examination.mistakes],
        "least_sure": [_answer_as_json(answer, names) for answer in examination.doubts],
    }


def _robustness(examination: Examination, predictor: Predictor, seed: int) -> dict[str, Any] | None:
    images, labels = examination.sample, examination.sample_labels
    if not len(images):
        return None
    predicted = examination.predictions.predicted[: len(labels)]
    return {
        "num_images": len(images),
        "accuracy": float(np.mean(predicted == labels)),
        "corruptions": accuracy_under_corruption(predictor, images, labels, seed),
    }


def _answer_as_json(answer: Answer, names: list[str]) -> dict[str, Any]:
    return {
        "path": answer.path,
        "label": names[answer.label],
        "predicted": names[answer.predicted],
        "probability": answer.probability,
    }


def _charts(figures: dict[str, Any]) -> dict[str, Markup]:
    drawn = {
        "reliability": charts.reliability(figures["reliability"]),
        "roc": charts.roc(figures["curves"]),
        "precision_recall": charts.precision_recall(figures["curves"]),
    }
    if robustness := figures["robustness"]:
        clean, by_corruption = robustness["accuracy"], robustness["corruptions"]
        drawn["robustness"] = charts.robustness(clean, by_corruption)
    return {name: Markup(svg) for name, svg in drawn.items()}


def _pictures(answers: list[Answer], onnx: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return answers as JSON, with image and heat map (None if there is none) as data URIs."""
    if not answers:
        return []
    images = np.stack([answer.image for answer in answers])
    overlaid = heat_maps.overlay_heat_maps(onnx, images, [answer.predicted for answer in answers])
    return [
        _answer_as_json(answer, names)
        | {
            "uri": data_uri(jpeg(answer.image)),
            "heat_map": data_uri(jpeg(overlaid[index])) if overlaid else None,
        }
        for index, answer in enumerate(answers)
    ]
