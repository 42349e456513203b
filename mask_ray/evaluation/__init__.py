"""How good a model is: figures with intervals, calibration, and a report for people.

Scores the ONNX file that is served, on images decoded as they are when it is.
"""

from mask_ray.evaluation.calibration import fit_temperature, write_calibrated
from mask_ray.evaluation.examination import Examined, examine
from mask_ray.evaluation.job import evaluate, log, run
from mask_ray.evaluation.report import Report, report
from mask_ray.evaluation.scores import BATCH_SIZE, Predictions, flatten, metrics, predict

__all__ = [
    "BATCH_SIZE",
    "Examined",
    "Predictions",
    "Report",
    "evaluate",
    "examine",
    "fit_temperature",
    "flatten",
    "log",
    "metrics",
    "predict",
    "report",
    "run",
    "write_calibrated",
]
