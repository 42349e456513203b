"""Runs and models in MLflow: the only module that imports it.

State is an SQLite file and a folder of artifacts under `MASK_RAY_HOME`, unless
`MLFLOW_TRACKING_URI` names a server.
"""

import importlib.metadata
import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import unquote, urlparse

import matplotlib.figure
import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from numpy.typing import NDArray

from mask_ray.config import CHALLENGER, MaskRayError, home, local_tracking_uri, tracking_uri

_ONNX_FILE = "model.onnx"
_MODEL_NEEDS = ("onnx", "onnxruntime", "numpy")


class TrackingError(MaskRayError):
    """The tracking store cannot be used as configured."""


class ModelNotFoundError(MaskRayError):
    """No model under this URI; the message says how to make one."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model file on this machine, and what the registry calls it."""

    path: Path
    name: str
    version: str | None


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


def _connect() -> None:
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


def _experiment_id(name: str) -> str:
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Without a server, MLflow's default is a folder below the current one, which a submitted job
    # loses.
    location = None if _is_server() else (home() / "mlartifacts").as_uri()
    return str(mlflow.create_experiment(name, artifact_location=location))


class Run:
    """One MLflow run, written to by its id from any process that reaches the store."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        with _clear_errors():
            _connect()
            self._client = MlflowClient()

    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        with _clear_errors():
            return str(self._client.get_run(self.run_id).info.status)

    def set_status(self, status: str) -> None:
        """Open the run again, as RUNNING, or close it as anything else."""
        with _clear_errors():
            if status == "RUNNING":
                self._client.update_run(self.run_id, status)
            else:
                self._client.set_terminated(self.run_id, status)

    def tags(self) -> dict[str, str]:
        """All tags, also MLflow's own."""
        with _clear_errors():
            return dict(self._client.get_run(self.run_id).data.tags)

    def history(self, metric: str) -> dict[int, float]:
        """The curve of a metric, by step; of points at the same step, the last."""
        with _clear_errors():
            points = self._client.get_metric_history(self.run_id, metric)
        return {p.step: p.value for p in sorted(points, key=lambda p: (p.step, p.timestamp))}

    def nested_tags(self, name: str) -> dict[str, str]:
        """What makes a run of this name one below this one."""
        return {MLFLOW_PARENT_RUN_ID: self.run_id} | name_tag(name)

    def open_nested(self, name: str, tags: Mapping[str, str]) -> "Run":
        """A new run below this one, to be closed by `set_status`."""
        own = self.nested_tags(name)
        with _clear_errors():
            experiment_id = self._client.get_run(self.run_id).info.experiment_id
            created = self._client.create_run(experiment_id, tags={**tags, **own})
            return Run(created.info.run_id)

    def nested(self) -> "list[Run]":
        """The runs below this one, in the order in which they were opened."""
        with _clear_errors():
            found = self._client.search_runs(
                [self._client.get_run(self.run_id).info.experiment_id],
                filter_string=f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'",
                order_by=["attributes.start_time"],
            )
        return [Run(run.info.run_id) for run in found]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings, once each."""
        logged = [Param(key, str(value)) for key, value in params.items()]
        with _clear_errors():
            self._client.log_batch(self.run_id, params=logged)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; with `step` (an epoch), as points of a curve."""
        now_ms = int(time.time() * 1000)
        logged = [Metric(_metric_name(key), value, now_ms, step) for key, value in metrics.items()]
        with _clear_errors():
            self._client.log_batch(self.run_id, metrics=logged)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or overwrite tags."""
        with _clear_errors():
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

    def log_json(self, content: Any, file_name: str) -> None:
        """Store `content` as an artifact in JSON."""
        self.log_text(json.dumps(content, indent=2), file_name)

    def log_text(self, content: str, file_name: str) -> None:
        """Store `content` as an artifact."""
        with _clear_errors():
            self._client.log_text(self.run_id, content, file_name)

    def load_json(self, file_name: str) -> Any:
        """What `log_json` stored."""
        with _clear_errors():
            return mlflow.artifacts.load_dict(f"runs:/{self.run_id}/{file_name}")

    def has_file(self, file_name: str) -> bool:
        """Whether there is such an artifact, not in a folder."""
        with _clear_errors():
            return file_name in {f.path for f in self._client.list_artifacts(self.run_id)}

    def log_file(self, path: Path) -> None:
        """Store a file as an artifact, under its name."""
        with _clear_errors():
            self._client.log_artifact(self.run_id, path)

    def log_figure(self, figure: matplotlib.figure.Figure, file_name: str) -> None:
        """Store a figure as an artifact; the file name's ending gives the format."""
        with _clear_errors():
            self._client.log_figure(self.run_id, figure, file_name)

    def log_folder(self, path: Path, name: str) -> None:
        """Store all files of a folder as artifacts, in a folder of this name."""
        with _clear_errors():
            self._client.log_artifacts(self.run_id, str(path), name)

    def register_model(
        self,
        onnx_path: Path,
        *,
        name: str,
        example: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
        metadata: Mapping[str, Any],
        keras_path: Path,
    ) -> str:
        """Log the model, register it as a new version of `name`, and make that the challenger.

        Args:
            onnx_path: The model file.
            name: Registered model.
            example: Input example, uint8 (N, S, S, 3).
            probabilities: The model's answer to it, float32 (N, classes).
            metadata: Kept with the model; JSON values.
            keras_path: The same model for Keras, kept beside it.

        Returns:
            The new version's number.
        """
        with _clear_errors():
            info = mlflow.onnx.log_model(
                onnx.load(onnx_path),
                name="model",
                run_id=self.run_id,
                registered_model_name=name,
                signature=infer_signature({"image": example}, {"probabilities": probabilities}),
                input_example={"image": example},
                metadata=dict(metadata),
                extra_files=[keras_path.as_uri()],
                save_as_external_data=False,
                onnx_execution_providers=["CPUExecutionProvider"],
                # Given, since MLflow otherwise loads the model in a new process to find out.
                pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in _MODEL_NEEDS],
            )
            version = str(info.registered_model_version)
            self._client.set_registered_model_alias(name, CHALLENGER, version)
        return version

    def registered_version(self, name: str) -> str | None:
        """The newest version of the model `name` that this run made; None where it made none."""
        with _clear_errors():
            found = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        versions = [int(version.version) for version in found if version.name == name]
        return str(max(versions)) if versions else None


class RegisteredModel:
    """A name in the registry: its versions, what is said of them, and its aliases."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _clear_errors():
            _connect()
            self._client = MlflowClient()

    def tags(self) -> dict[str, str]:
        """What is said of the model as a whole."""
        with _clear_errors():
            return dict(self._client.get_registered_model(self.name).tags)

    def set_tag(self, key: str, value: str) -> None:
        """Say it of the model as a whole."""
        with _clear_errors():
            self._client.set_registered_model_tag(self.name, key, value)

    def has_version(self, version: str) -> bool:
        """Whether there is such a version."""
        with _clear_errors():
            found = self._client.search_model_versions(f"name = '{self.name}'")
        return version in {str(known.version) for known in found}

    def run_of(self, version: str) -> str:
        """The id of the run that made a version."""
        with _clear_errors():
            return str(self._client.get_model_version(self.name, version).run_id)

    def version_tags(self, version: str) -> dict[str, str]:
        """What is said of a version."""
        with _clear_errors():
            return dict(self._client.get_model_version(self.name, version).tags)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Say it of a version."""
        with _clear_errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.name, version, key, value)

    def move(self, alias: str, version: str | None) -> None:
        """Have the alias name this version, or none."""
        with _clear_errors():
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
            else:
                self._client.set_registered_model_alias(self.name, alias, version)


def _metric_name(name: str) -> str:
    """Names hold class names, which are names of folders; MLflow allows fewer characters."""
    return re.sub(r"[^/\w.\- :]", "_", name)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One line for whatever a store, its files or the way to it may raise."""
    try:
        yield
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrackingError(f"the tracking store {tracking_uri()} fails: {reason}") from error


@contextmanager
def start_run(experiment: str, tags: Mapping[str, str], run_id: str | None = None) -> Iterator[Run]:
    """Open a run, and close it as FINISHED, FAILED or (on SIGINT or SIGTERM) KILLED.

    Args:
        experiment: Where a new run goes; made if need be.
        tags: Set on the run.
        run_id: A run to open again, instead of a new one.

    Raises:
        TrackingError: the tracking store does not answer, or refuses the run.
    """
    run = _open_run(experiment, tags) if run_id is None else _open_again(run_id, tags)
    status = "FAILED"
    try:
        with _terminate_as_interrupt():
            yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _close(run, status)


def name_tag(name: str) -> dict[str, str]:
    """What gives a run this name."""
    return {MLFLOW_RUN_NAME: name}


def find_runs(experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """The runs of an experiment that have these tags, the newest first."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    with _clear_errors():
        _connect()
        found = MlflowClient().search_runs(
            [_experiment_id(experiment)],
            filter_string=wanted,
            order_by=["attributes.start_time DESC"],
        )
    return [Run(run.info.run_id) for run in found]


@contextmanager
def system_metrics(run_id: str, node: str) -> Iterator[None]:
    """Record how busy this machine is, every ten seconds: the run's `system/NODE/...` metrics.

    A store that fails ends the record, not the run. `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`
    changes the seconds.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    _connect()
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, node_id=node)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _open_run(experiment: str, tags: Mapping[str, str]) -> Run:
    with _clear_errors():
        _connect()
        experiment_id = _experiment_id(experiment)
        mlflow.set_experiment(experiment_id=experiment_id)
        return Run(MlflowClient().create_run(experiment_id, tags=dict(tags)).info.run_id)


def _open_again(run_id: str, tags: Mapping[str, str]) -> Run:
    run = Run(run_id)
    run.set_tags(tags)
    with _clear_errors():
        # Or the model would be logged in the default experiment, below the current folder.
        mlflow.set_experiment(experiment_id=MlflowClient().get_run(run_id).info.experiment_id)
    run.set_status("RUNNING")
    return run


def _close(run: Run, status: str) -> None:
    """Also where the store is gone, which the error on its way out says already."""
    with nullcontext() if status == "FINISHED" else suppress(TrackingError), _clear_errors():
        MlflowClient().set_terminated(run.run_id, status)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, by which `ray job stop` ends a job, unwind the stack as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def resolve_model(uri: str) -> ResolvedModel:
    """Find a model's ONNX file, fetching it from the registry if need be.

    Args:
        uri: An MLflow model URI (`models:/name@alias`, `models:/name/3`, `runs:/.../model`) or
            the path of an `.onnx` file.

    Raises:
        ModelNotFoundError: there is none; the message says which command makes one.
    """
    if ":/" not in uri or uri.startswith("file:"):
        return _model_file(Path(unquote(urlparse(uri).path)) if ":/" in uri else Path(uri))
    _connect()
    try:
        name, version = _name_and_version(uri)
        # By version: an alias may move in the meantime.
        found = uri if version is None else f"models:/{name}/{version}"
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=found))
    except MlflowException as error:
        raise ModelNotFoundError(
            f"no model {uri} in {tracking_uri()} ({error.message}). Make one with "
            "`ray job submit --working-dir . -- python -m jobs.train --data DIR`, or `make demo`"
        ) from error
    return ResolvedModel(folder / _ONNX_FILE, name, version)


def aliases(name: str) -> dict[str, str]:
    """The version that each alias of a registered model names; none where there is no model.

    Raises:
        TrackingError: the tracking store does not answer.
    """
    with _clear_errors():
        _connect()
        try:
            found = MlflowClient().get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
    return {alias: str(version) for alias, version in found.items()}


def _model_file(path: Path) -> ResolvedModel:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ModelNotFoundError(
            f"model_uri must be an MLflow model URI (models:/name@alias) or an .onnx file; "
            f"there is no file {path}"
        )
    return ResolvedModel(path, path.stem, None)


def _name_and_version(uri: str) -> tuple[str, str | None]:
    """What the registry calls the model; a URI that is not of the registry keeps its own name."""
    if not uri.startswith("models:/"):
        return uri, None
    name, *version = get_model_name_and_version(MlflowClient(), uri)
    return (name, str(version[0])) if version else (uri, None)
