"""The MLflow store: where it is, how to reach it, and how its errors read."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.exceptions import MlflowException

from mask_ray.config import MaskRayError, home, local_tracking_uri, tracking_uri


class TrackingError(MaskRayError):
    """The tracking store cannot be used as configured."""


def _is_server() -> bool:
    return tracking_uri().partition(":")[0] in ("http", "https", "databricks")


def check_shared(num_nodes: int) -> None:
    """Refuse a store that only one of several nodes could see.

    Raises:
        TrackingError: the cluster has several nodes and the store is a local file.
    """
    if num_nodes > 1 and not _is_server():
        raise TrackingError(
            f"a cluster of {num_nodes} nodes needs a tracking server that all of them reach: "
            f"set MLFLOW_TRACKING_URI to http(s)://...; got {tracking_uri()}"
        )


def connect() -> None:
    """Point MLflow at the store. The local one is made when it is missing."""
    # MLflow's own 7 retries take minutes before a server that is gone becomes an error.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    for chatty in ("mlflow.store.db.utils", "mlflow.utils.uv_utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It misses `pip` itself, which environments made by uv don't have.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    if tracking_uri() == local_tracking_uri():
        home().mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(tracking_uri())


def find_or_create_experiment(name: str) -> str:
    """Id of the experiment of this name."""
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Without a server, MLflow's default is a folder below the current one, which a submitted job
    # loses.
    location = None if _is_server() else (home() / "mlartifacts").as_uri()
    return str(mlflow.create_experiment(name, artifact_location=location))


@contextmanager
def clear_errors() -> Iterator[None]:
    """One line for whatever a store, its files or the way to it may raise."""
    try:
        yield
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrackingError(f"the tracking store {tracking_uri()} fails: {reason}") from error
