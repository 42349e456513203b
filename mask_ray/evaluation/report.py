"""What an evaluation found, as JSON for programs and as one page for people."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from mask_ray import reports
from mask_ray.evaluation import calibration, charts, robustness
from mask_ray.evaluation.examination import Examined, Mistake
from mask_ray.evaluation.heatmaps import HeatMaps, NoHeatMapsError
from mask_ray.evaluation.intervals import intervals
from mask_ray.evaluation.scores import Predictions, metrics
from mask_ray.evaluation.slices import slices
from mask_ray.predictor import Predictor

_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Report:
    """Everything that is told of one model on one set of images.

    Args:
        figures: As JSON has them.
        examined: What they are of.
        heat_maps: Of the model, where it is one that has them.
    """

    figures: dict[str, Any]
    examined: Examined
    heat_maps: HeatMaps | None


def report(examined: Examined, path: Path, model: Mapping[str, Any]) -> Report:
    """Work everything out.

    Args:
        examined: Of the images.
        path: The model's file, for what is asked of it beyond its answers.
        model: Its name and such, to be told.
    """
    predictions = examined.predictions
    figures = {
        "model": dict(model),
        "class_names": predictions.class_names,
        "metrics": metrics(predictions),
        "intervals_95": intervals(predictions),
        "confusion": confusion_matrix(
            predictions.labels, predictions.predicted, labels=range(len(predictions.class_names))
        ).tolist(),
        "slices": {
            name: [asdict(each) for each in found] for name, found in slices(examined).items()
        },
        "calibration": [
            asdict(each) for each in calibration.bins(predictions.labels, predictions.probabilities)
        ],
        "thresholds": _thresholds(predictions),
        "robustness": _robustness(examined, path),
        "mistakes": [_told(mistake, predictions.class_names) for mistake in examined.mistakes],
    }
    return Report(figures, examined, _heat_maps(path))


def _heat_maps(path: Path) -> HeatMaps | None:
    try:
        return HeatMaps(onnx.load(path))
    except NoHeatMapsError:
        return None


def _robustness(examined: Examined, path: Path) -> dict[str, Any]:
    images, labels = examined.sampled
    if not len(images):
        return {"num_images": 0}
    predictor = Predictor(path)
    plain = float((predictor.predict(images).argmax(axis=1) == labels).mean())
    found = robustness.accuracies(predictor, images, labels)
    return {
        "num_images": len(images),
        "accuracy": plain,
        "harms": {
            name: {
                "strength_is": robustness.HARMS[name][1],
                "points": [{"strength": s, "accuracy": a} for s, a in points],
            }
            for name, points in found.items()
        },
    }


def _thresholds(predictions: Predictions) -> dict[str, list[dict[str, float | None]]]:
    """For each class: if an image counts as one from a probability on, how right that is."""
    return {
        name: [
            _at(threshold, predictions.probabilities[:, index], predictions.labels == index)
            for threshold in _THRESHOLDS
        ]
        for index, name in enumerate(predictions.class_names)
    }


def _at(threshold: float, scores: Any, is_own: Any) -> dict[str, float | None]:
    counted = scores >= threshold
    right = int((counted & is_own).sum())
    return {
        "threshold": threshold,
        "precision": right / int(counted.sum()) if counted.any() else None,
        "recall": right / int(is_own.sum()) if is_own.any() else None,
    }


def _told(mistake: Mistake, class_names: list[str]) -> dict[str, Any]:
    predicted = int(mistake.probabilities.argmax())
    return {
        "path": mistake.path,
        "label": class_names[mistake.label],
        "predicted": class_names[predicted],
        "probability": float(mistake.probabilities[predicted]),
    }


def html(of: Report) -> str:
    """One page that needs no other file."""
    predictions = of.examined.predictions
    figures = of.figures
    robust = figures["robustness"]
    drawn = {
        "reliability": charts.reliability(
            calibration.bins(predictions.labels, predictions.probabilities)
        ),
        "precision_recall": charts.precision_recall(predictions),
        "roc": charts.roc(predictions),
    }
    if robust["num_images"]:
        points = {
            name: [(point["strength"], point["accuracy"]) for point in harm["points"]]
            for name, harm in robust["harms"].items()
        }
        drawn["robustness"] = charts.robustness(points, robust["accuracy"])
    return reports.render(
        "evaluation.html.j2",
        title="Evaluation",
        subtitle=_subtitle(figures),
        figures=figures,
        charts={name: Markup(svg) for name, svg in drawn.items()},
        mistakes=[_shown(of.heat_maps, mistake) for mistake in of.examined.mistakes],
        confusion_shades=_shades(figures["confusion"]),
    )


def _subtitle(figures: dict[str, Any]) -> str:
    model = figures["model"]
    version = f" version {model['version']}" if model.get("version") else ""
    split = f", {model['split']} split" if model.get("split") else ""
    return f"{model['name']}{version} on {figures['metrics']['num_images']:,} images{split}"


def _shown(heat_maps: HeatMaps | None, mistake: Mistake) -> dict[str, str | None]:
    seen = reports.data_uri(reports.jpeg(mistake.image))
    if heat_maps is None:
        return {"seen": seen, "heat": None}
    heat = heat_maps.drawn(mistake.image, int(mistake.probabilities.argmax()))
    return {"seen": seen, "heat": reports.data_uri(reports.jpeg(heat))}


def _shades(confusion: list[list[int]]) -> list[list[float]]:
    """Share of its row of each cell."""
    counts = np.array(confusion, float)
    shares: list[list[float]] = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
    return shares
