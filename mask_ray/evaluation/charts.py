"""Draw an evaluation's charts as inline SVG, in the colours of the page around them."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholders, replaced by the page's colours, which differ in light and dark mode. Colour-blind
# people can distinguish those of series: Okabe and Ito 2008, https://jfly.uni-koeln.de/color/.
_TEXT, _LINE, _ACCENT, _TRACK = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLOURS = {
    _TEXT: "var(--text)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _TRACK: "var(--track)",
}
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", "-.", ":")

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mask_ray",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def plain(name: str) -> str:
    """Return a text for a figure that shows this name.

    Matplotlib takes what stands between two dollars for a formula, and leaves names that begin with
    an underscore out of legends.
    """
    escaped = name.replace("$", r"\$")
    return f"\u200b{escaped}" if name.startswith("_") else escaped


def reliability(bins: list[dict[str, Any]]) -> str:
    """Draw accuracy by confidence, and below it the number of images."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        left = [each["low"] for each in bins]
        width = bins[0]["high"] - bins[0]["low"]
        bars = {"align": "edge", "width": 0.92 * width, "color": _ACCENT}
        upper.bar(left, [each["accuracy"] for each in bins], **bars)
        upper.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle=":")
        upper.set(ylabel="Accuracy", ylim=(0, 1.02), xlim=(0, 1))
        lower.bar(left, [each["num_images"] for each in bins], **bars)
        lower.set(xlabel="Confidence", ylabel="Images", yscale="log", ylim=(0.7, None))
        return _svg(figure, "Accuracy by confidence")


def roc(curves: dict[str, dict[str, Any]]) -> str:
    """Draw the ROC curve of each class."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _square()
        for index, (name, curve) in enumerate(curves.items()):
            _plot(axes, curve["roc"], index, f"{plain(name)} (area {curve['roc_auc']:.4f})")
        axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle=":")
        axes.set(xlabel="False positive rate", ylabel="True positive rate")
        axes.legend(loc="lower right")
        return _svg(figure, "ROC curves")


def precision_recall(curves: dict[str, dict[str, Any]]) -> str:
    """Draw the precision-recall curve of each class."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _square()
        for index, (name, curve) in enumerate(curves.items()):
            label = f"{plain(name)} (average {curve['average_precision']:.4f})"
            _plot(axes, curve["precision_recall"], index, label)
        axes.set(xlabel="Recall", ylabel="Precision")
        axes.legend(loc="lower left")
        return _svg(figure, "Precision-recall curves")


def robustness(clean: float, by_corruption: dict[str, list[dict[str, Any]]]) -> str:
    """Draw accuracy by strength for each corruption, starting with the original images."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for index, (name, levels) in enumerate(by_corruption.items()):
            values = [clean, *(level["accuracy"] for level in levels)]
            colour, style = _SERIES[index % len(_SERIES)], _STYLES[index % len(_STYLES)]
            axes.plot(values, marker="o", color=colour, linestyle=style, label=name)
        axes.set_xticks(range(4), ["original", "mild", "medium", "strong"])
        axes.set_ylabel("Accuracy")
        axes.set_ylim(top=1.01)
        axes.legend(loc="lower left", ncols=2)
        return _svg(figure, "Accuracy on corrupted images")


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return figure, axes


def _plot(axes: Axes, points: list[list[float]], index: int, label: str) -> None:
    colour, style = _SERIES[index % len(_SERIES)], _STYLES[index % len(_STYLES)]
    axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=label)


def _svg(figure: Figure, title: str) -> str:
    """Return the <svg> element, of flexible width, with ids that are unique on the page."""
    output = io.StringIO()
    figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    text = output.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    )
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    prefix = re.sub(r"\W", "", title).lower()
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text)
    for placeholder, colour in _PAGE_COLOURS.items():
        text = text.replace(placeholder, colour)
    return text
