"""Runs in MLflow: open, close, find them; write and read their metrics, tags and files."""

import importlib.metadata
import json
import logging
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import matplotlib.figure
import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.models import infer_signature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from numpy.typing import NDArray

from mask_ray.config import CHALLENGER
from mask_ray.tracking.store import TrackingError, clear_errors, connect, find_or_create_experiment

_MODEL_NEEDS = ("onnx", "onnxruntime", "numpy")


class Run:
    """One MLflow run, written to by its id from any process that reaches the store."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        with clear_errors():
            connect()
            self._client = MlflowClient()

    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        with clear_errors():
            return str(self._client.get_run(self.run_id).info.status)

    def set_status(self, status: str) -> None:
        """Open the run again, as RUNNING, or close it as anything else."""
        with clear_errors():
            if status == "RUNNING":
                self._client.update_run(self.run_id, status)
            else:
                self._client.set_terminated(self.run_id, status)

    def tags(self) -> dict[str, str]:
        """All tags, also MLflow's own."""
        with clear_errors():
            return dict(self._client.get_run(self.run_id).data.tags)

    def history(self, metric: str) -> dict[int, float]:
        """The curve of a metric, by step; of points at the same step, the last."""
        with clear_errors():
            points = self._client.get_metric_history(self.run_id, metric)
        return {p.step: p.value for p in sorted(points, key=lambda p: (p.step, p.timestamp))}

    def nested_tags(self, name: str) -> dict[str, str]:
        """What makes a run of this name one below this one."""
        return {MLFLOW_PARENT_RUN_ID: self.run_id} | name_tag(name)

    def open_nested(self, name: str, tags: Mapping[str, str]) -> "Run":
        """A new run below this one, to be closed by `set_status`."""
        own = self.nested_tags(name)
        with clear_errors():
            experiment_id = self._client.get_run(self.run_id).info.experiment_id
            created = self._client.create_run(experiment_id, tags={**tags, **own})
            return Run(created.info.run_id)

    def nested(self) -> "list[Run]":
        """The runs below this one, in the order in which they were opened."""
        with clear_errors():
            found = self._client.search_runs(
                [self._client.get_run(self.run_id).info.experiment_id],
                filter_string=f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'",
                order_by=["attributes.start_time"],
            )
        return [Run(run.info.run_id) for run in found]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings, once each."""
        logged = [Param(key, str(value)) for key, value in params.items()]
        with clear_errors():
            self._client.log_batch(self.run_id, params=logged)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; with `step` (an epoch), as points of a curve."""
        now_ms = int(time.time() * 1000)
        logged = [Metric(_metric_name(key), value, now_ms, step) for key, value in metrics.items()]
        with clear_errors():
            self._client.log_batch(self.run_id, metrics=logged)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or overwrite tags."""
        with clear_errors():
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

    def log_json(self, content: Any, file_name: str) -> None:
        """Store `content` as an artifact in JSON."""
        self.log_text(json.dumps(content, indent=2), file_name)

    def log_text(self, content: str, file_name: str) -> None:
        """Store `content` as an artifact."""
        with clear_errors():
            self._client.log_text(self.run_id, content, file_name)

    def load_json(self, file_name: str) -> Any:
        """What `log_json` stored."""
        with clear_errors():
            return mlflow.artifacts.load_dict(f"runs:/{self.run_id}/{file_name}")

    def has_file(self, file_name: str) -> bool:
        """Whether there is such an artifact, not in a folder."""
        with clear_errors():
            return file_name in {f.path for f in self._client.list_artifacts(self.run_id)}

    def log_file(self, path: Path) -> None:
        """Store a file as an artifact, under its name."""
        with clear_errors():
            self._client.log_artifact(self.run_id, path)

    def log_figure(self, figure: matplotlib.figure.Figure, file_name: str) -> None:
        """Store a figure as an artifact; the file name's ending gives the format."""
        with clear_errors():
            self._client.log_figure(self.run_id, figure, file_name)

    def log_folder(self, path: Path, name: str) -> None:
        """Store all files of a folder as artifacts, in a folder of this name."""
        with clear_errors():
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
        with clear_errors():
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
        with clear_errors():
            found = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        versions = [int(version.version) for version in found if version.name == name]
        return str(max(versions)) if versions else None


def _metric_name(name: str) -> str:
    """Names hold class names, which are names of folders; MLflow allows fewer characters."""
    return re.sub(r"[^/\w.\- :]", "_", name)


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
    with clear_errors():
        connect()
        found = MlflowClient().search_runs(
            [find_or_create_experiment(experiment)],
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
    connect()
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, node_id=node)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _open_run(experiment: str, tags: Mapping[str, str]) -> Run:
    with clear_errors():
        connect()
        experiment_id = find_or_create_experiment(experiment)
        mlflow.set_experiment(experiment_id=experiment_id)
        return Run(MlflowClient().create_run(experiment_id, tags=dict(tags)).info.run_id)


def _open_again(run_id: str, tags: Mapping[str, str]) -> Run:
    run = Run(run_id)
    run.set_tags(tags)
    with clear_errors():
        # Or the model would be logged in the default experiment, below the current folder.
        mlflow.set_experiment(experiment_id=MlflowClient().get_run(run_id).info.experiment_id)
    run.set_status("RUNNING")
    return run


def _close(run: Run, status: str) -> None:
    """Also where the store is gone, which the error on its way out says already."""
    with nullcontext() if status == "FINISHED" else suppress(TrackingError), clear_errors():
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
