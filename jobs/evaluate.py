"""Evaluate a registered model, or an ONNX file, on labelled images. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Import what is heavy only once the settings are known to be good."""
    from mask_ray.evaluation.run import evaluate_model

    return evaluate_model(settings)


if __name__ == "__main__":
    cli.main(EvaluateSettings, evaluate)
