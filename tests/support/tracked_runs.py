"""Runs that commands left in the tracking store of a test."""

from typing import Any

import mlflow

from mask_ray.config import tracking_uri


def all_runs() -> Any:
    """A table of the runs of all experiments, the oldest first."""
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.search_runs(search_all_experiments=True, order_by=["start_time"])


def trial_runs(search_id: str) -> dict[int, mlflow.entities.Run]:
    """The runs of a search's trials, by their numbers."""
    mlflow.set_tracking_uri(tracking_uri())
    runs = mlflow.search_runs(
        experiment_names=["mask_ray"],
        filter_string=f"tags.`mlflow.parentRunId` = '{search_id}'",
        output_format="list",
    )
    return {int(run.data.tags["trial"]): run for run in runs}
