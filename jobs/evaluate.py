"""Evaluate a registered model, or an ONNX file, on labelled images. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Run the job; heavy imports wait until the settings are known to be valid."""
    from mask_ray.evaluation.run import evaluate_model

    return evaluate_model(settings)


if __name__ == "__main__":
    cli.main(EvaluateSettings, evaluate)
