"""Train a classifier on Ray and register it in MLflow. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import TrainSettings


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train and register a model; imports are here so that bad settings fail at once."""
    from mask_ray.training.run import train_model

    return train_model(settings)


def stored_settings(run_id: str) -> dict[str, Any]:
    """Return the settings of the run to resume or repeat."""
    from mask_ray.training import resume

    return resume.stored_settings(run_id)


if __name__ == "__main__":
    cli.main(TrainSettings, train, stored_settings)
