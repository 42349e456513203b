"""Figures as SVG that takes the colour of the text around it, in light and in dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from mask_ray.evaluation.calibration import Bin
from mask_ray.evaluation.scores import Predictions

# Found nowhere else in a figure, and replaced.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "svg.fonttype": "none",
    "font.size": 11,
    # Told apart by everyone, on light and on dark: Okabe and Ito 2008.
    "axes.prop_cycle": cycler(
        color=["#0f86c9", "#d55e00", "#109873", "#cc79a7", "#c08a00", "#56a4d9"]
    ),
}


def reliability(bins: Sequence[Bin]) -> str:
    """Accuracy against confidence, a point for each bin, as large as its share of the images."""
    axes = _axes()
    total = sum(each.num_images for each in bins)
    axes.plot([0, 1], [0, 1], ":", color=_INK, label="perfect")
    axes.scatter(
        [each.confidence for each in bins],
        [each.accuracy for each in bins],
        s=[30 + 400 * each.num_images / total for each in bins],
        alpha=0.8,
        label="images",
    )
    axes.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1.03), ylim=(-0.03, 1.06))
    return _svg(axes, "reliability")


def precision_recall(predictions: Predictions) -> str:
    """Precision against recall of each class that has images."""
    axes = _axes()
    for index, name in enumerate(predictions.class_names):
        is_own = predictions.labels == index
        if is_own.any():
            precision, recall, _ = precision_recall_curve(
                is_own, predictions.probabilities[:, index]
            )
            axes.plot(recall, precision, label=name)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.03), ylim=(0, 1.05))
    return _svg(axes, "precision_recall")


def roc(predictions: Predictions) -> str:
    """True against false positive rate of each class against the rest."""
    axes = _axes()
    axes.plot([0, 1], [0, 1], ":", color=_INK, label="chance")
    for index, name in enumerate(predictions.class_names):
        is_own = predictions.labels == index
        if is_own.any() and not is_own.all():
            false, true, _ = roc_curve(is_own, predictions.probabilities[:, index])
            axes.plot(false, true, label=name)
    axes.set(xlabel="False positive rate", ylabel="True positive rate", ylim=(0, 1.05))
    return _svg(axes, "roc")


def robustness(accuracies: Mapping[str, Sequence[tuple[float, float]]], plain: float) -> str:
    """Accuracy against how strong the harm is: none, and three strengths of each kind."""
    axes = _axes()
    for name, points in accuracies.items():
        axes.plot([plain, *(accuracy for _, accuracy in points)], marker="o", label=name)
    axes.set(xlabel="Strength", ylabel="Accuracy", ylim=(0, 1.05))
    axes.set_xticks(np.arange(4), ["none", "weak", "middle", "strong"])
    return _svg(axes, "robustness")


def _axes() -> Axes:
    with mpl.rc_context(_STYLE):
        return Figure(figsize=(5.2, 3.9), layout="constrained").subplots()


def _svg(axes: Axes, name: str) -> str:
    """The figure as an element; its name keeps its ids apart from those of others in a page."""
    written = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        axes.legend()
        assert isinstance(axes.figure, Figure)
        axes.figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
