"""Connect to the MLflow store, and turn its errors into one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mask_ray.config import MaskRayError, home, local_tracking_uri, tracking_uri
from mask_ray.files import PRIVATE_FILE, check_home, make_private

# By this, MLflow's page opens an experiment with its runs and not with its traces. The page of 3.17
# goes by a switch of its own between agents and training: see `Run.list_path`.
_KIND_TAG = "mlflow.experimentKind"
_KIND = "custom_model_development"


class TrackingError(MaskRayError):
    """The tracking store cannot be used as configured."""


class UnreachableError(TrackingError):
    """The tracking store does not answer; what it holds is unknown."""


def is_server() -> bool:
    """Return whether the store is a server, rather than a file on this machine."""
    return tracking_uri().partition(":")[0] in ("http", "https", "databricks")


def check_shared(num_nodes: int) -> None:
    """Reject a store that only one of several nodes can reach.

    Raises:
        TrackingError: the cluster has several nodes and the store is a local file.
    """
    if num_nodes > 1 and not is_server():
        raise TrackingError(
            f"a cluster of {num_nodes} nodes needs a tracking server that all of them reach: "
            f"set MLFLOW_TRACKING_URI to http(s)://...; got {tracking_uri()}"
        )


def connect() -> None:
    """Point MLflow at the store; create the folder of the local one if it is missing.

    Raises:
        TrackingError: that folder cannot be used. MLflow would try it again for minutes.
    """
    # MLflow's default of 7 retries takes minutes to report a server that is down.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    # Its default of 120 s for each try adds up to ten minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("mlflow.store.db.utils", "mlflow.utils.uv_utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that `pip` is missing, as it is in environments made by uv.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    if tracking_uri() == local_tracking_uri():
        _prepare_home()
    mlflow.set_tracking_uri(tracking_uri().full)


def _prepare_home() -> None:
    """Create the folder, the database and the folder of artifacts for their owner alone."""
    try:
        check_home()
    except MaskRayError as error:
        raise TrackingError(f"the tracking store {tracking_uri()} fails: {error}") from error
    make_private(home() / "mlartifacts")
    # SQLite takes an empty file for a new database, and its own files get the same mode.
    (home() / "mlflow.db").touch(PRIVATE_FILE)


def answer_soon() -> None:
    """Let this process wait for the store seconds, not minutes: two tries of 5 s each.

    For processes of a service, which can answer with the models that they have.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"


def find_or_create_experiment(name: str) -> str:
    """Return the id of the experiment of this name."""
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        if _KIND_TAG not in experiment.tags:  # made by an earlier version
            MlflowClient().set_experiment_tag(experiment.experiment_id, _KIND_TAG, _KIND)
        return str(experiment.experiment_id)
    # Without a server, MLflow's default is a folder in the working directory, which is deleted
    # after a submitted job.
    location = None if is_server() else (home() / "mlartifacts").as_uri()
    return str(mlflow.create_experiment(name, artifact_location=location, tags={_KIND_TAG: _KIND}))


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn errors of the store, its files or the network into a TrackingError of one line."""
    try:
        yield
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors too
        uri = tracking_uri()
        reason = uri.scrub((str(error).splitlines() or [type(error).__name__])[0])
        raise TrackingError(f"the tracking store {uri} fails: {reason}") from error
