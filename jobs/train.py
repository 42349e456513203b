"""Train a classifier on Ray and register it in MLflow. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import TrainSettings


def train(settings: TrainSettings) -> dict[str, Any]:
    """Import what is heavy only once the settings are known to be good."""
    from mask_ray.training.run import train_model

    return train_model(settings)


def stored_settings(run_id: str) -> dict[str, Any]:
    """Those of the run to resume."""
    from mask_ray.training import resume

    return resume.stored_settings(run_id)


if __name__ == "__main__":
    cli.main(TrainSettings, train, stored_settings)
