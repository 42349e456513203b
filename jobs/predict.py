"""Classify many images into a Parquet or CSV file. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config.prediction import PredictSettings


def predict(settings: PredictSettings) -> dict[str, Any]:
    """Run the job; heavy imports wait until the settings are known to be valid."""
    from mask_ray.batch_prediction.run import predict_files

    return predict_files(settings)


if __name__ == "__main__":
    cli.main(PredictSettings, predict)
