"""Evaluate a model: metrics with intervals, calibration, slices, robustness, and a report.

Evaluates the ONNX file that will be served, on images decoded as in serving. Needs no Keras.
Figures and reports are returned, not stored.
"""

from mask_ray.evaluation.calibration import fit_temperature
from mask_ray.evaluation.examination import Examination, examine
from mask_ray.evaluation.metrics import (
    Predictions,
    compute_metrics,
    confusion_matrix_figure,
    flatten,
    predict,
    roc_figure,
    unrecognised,
)
from mask_ray.evaluation.report import HTML_FILE, JSON_FILE, Report
from mask_ray.evaluation.report import make as make_report

__all__ = [
    "HTML_FILE",
    "JSON_FILE",
    "Examination",
    "Predictions",
    "Report",
    "compute_metrics",
    "confusion_matrix_figure",
    "examine",
    "fit_temperature",
    "flatten",
    "make_report",
    "predict",
    "roc_figure",
    "unrecognised",
]
