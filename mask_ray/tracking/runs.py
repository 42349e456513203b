"""Open, close and find MLflow runs; read and write their metrics, tags and artifacts."""

import hashlib
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
from typing import TYPE_CHECKING, Any, NoReturn

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, SourceType
from mlflow.environment_variables import MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING
from mlflow.models import infer_signature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)
from numpy.typing import NDArray

from mask_ray.config import CHALLENGER
from mask_ray.tracking.registry import DIGEST_TAG
from mask_ray.tracking.store import (
    TrackingError,
    connect,
    find_or_create_experiment,
    translate_errors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Longest digest of a data set in MLflow's database.
_DIGEST_LENGTH = 8

_MODEL_NEEDS = ("onnx", "onnxruntime", "numpy")


class Run:
    """An MLflow run, addressed by its id; any process that reaches the store can write to it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        with translate_errors():
            connect()
            self._client = MlflowClient()

    def status(self) -> str:
        """Return RUNNING, FINISHED, FAILED or KILLED."""
        with translate_errors():
            return str(self._client.get_run(self.run_id).info.status)

    def set_status(self, status: str) -> None:
        """Reopen the run as RUNNING, or close it with another status."""
        with translate_errors():
            if status == "RUNNING":
                self._client.update_run(self.run_id, status)
            else:
                self._client.set_terminated(self.run_id, status)

    def tags(self) -> dict[str, str]:
        """Return all tags, including MLflow's own."""
        with translate_errors():
            return dict(self._client.get_run(self.run_id).data.tags)

    def history(self, metric: str) -> dict[int, float]:
        """Return the values of a metric by step; the last one if a step has several."""
        with translate_errors():
            points = self._client.get_metric_history(self.run_id, metric)
        return {p.step: p.value for p in sorted(points, key=lambda p: (p.step, p.timestamp))}

    def nested_tags(self, name: str) -> dict[str, str]:
        """Return the tags that nest a run of this name in this one."""
        return {MLFLOW_PARENT_RUN_ID: self.run_id} | name_tag(name)

    def open_nested(self, name: str, tags: Mapping[str, str]) -> "Run":
        """Create a nested run, to be closed by `set_status`."""
        nesting = self.nested_tags(name)
        with translate_errors():
            experiment_id = self._client.get_run(self.run_id).info.experiment_id
            created = self._client.create_run(experiment_id, tags={**tags, **nesting})
            return Run(created.info.run_id)

    def nested(self) -> "list[Run]":
        """Return the nested runs, in the order in which they were created."""
        with translate_errors():
            found = self._client.search_runs(
                [self._client.get_run(self.run_id).info.experiment_id],
                filter_string=f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'",
                order_by=["attributes.start_time"],
            )
        return [Run(run.info.run_id) for run in found]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; each can be logged once."""
        logged = [Param(key, str(value)) for key, value in params.items()]
        with translate_errors():
            self._client.log_batch(self.run_id, params=logged)

    def list_path(self) -> str:
        """Return the path of MLflow's page that lists the run among those of its experiment.

        The page of MLflow 3.17 shows traces of agents at first, whatever an experiment holds,
        unless its URL says that it is about the training of models.
        """
        with translate_errors():
            experiment_id = self._client.get_run(self.run_id).info.experiment_id
        return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"

    def describe(self, text: str) -> None:
        """Set the description of the run, in Markdown."""
        self.set_tags({MLFLOW_RUN_NOTE: text})

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the data set that the run uses, which MLflow's page shows in a column of its own.

        Args:
            name: Name of the data set.
            digest: Digest of its content; its first 8 characters are shown, as of MLflow's own.
            source: Where it is, without secrets.
            profile: Counts to show with it.
        """
        dataset = Dataset(
            name=name,
            digest=digest[:_DIGEST_LENGTH],
            source_type="local" if "://" not in source else "uri",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)),
        )
        with translate_errors():
            self._client.log_inputs(self.run_id, [DatasetInput(dataset)])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step (an epoch)."""
        now_ms = int(time.time() * 1000)
        logged = [Metric(_metric_name(key), value, now_ms, step) for key, value in metrics.items()]
        with translate_errors():
            self._client.log_batch(self.run_id, metrics=logged)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or overwrite tags."""
        with translate_errors():
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

    def log_json(self, content: Any, file_name: str) -> None:
        """Store `content` as an artifact in JSON."""
        self.log_text(json.dumps(content, indent=2), file_name)

    def log_text(self, content: str, file_name: str) -> None:
        """Store `content` as an artifact."""
        with translate_errors():
            self._client.log_text(self.run_id, content, file_name)

    def load_json(self, file_name: str) -> Any:
        """Return what `log_json` stored."""
        with translate_errors():
            return mlflow.artifacts.load_dict(f"runs:/{self.run_id}/{file_name}")

    def has_file(self, file_name: str) -> bool:
        """Return whether there is such an artifact, outside of folders."""
        with translate_errors():
            return file_name in {f.path for f in self._client.list_artifacts(self.run_id)}

    def log_file(self, path: Path) -> None:
        """Store a file as an artifact, under its name."""
        with translate_errors():
            self._client.log_artifact(self.run_id, path)

    def download(self, file_name: str, folder: Path) -> Path:
        """Copy an artifact into a folder; return its path there."""
        with translate_errors():
            return Path(self._client.download_artifacts(self.run_id, file_name, str(folder)))

    def log_figure(self, figure: "Figure", file_name: str) -> None:
        """Store a figure as an artifact; the file name's ending gives the format."""
        with translate_errors():
            self._client.log_figure(self.run_id, figure, file_name)

    def log_folder(self, path: Path, name: str) -> None:
        """Store all files of a folder as artifacts, in a folder of this name."""
        with translate_errors():
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
        """Log the model, register it as a new version of `name`, and make it the challenger.

        Args:
            onnx_path: Model file.
            name: Name of the registered model.
            example: Example of the input, uint8 (N, S, S, 3).
            probabilities: The model's output for it, float32 (N, classes).
            metadata: JSON values to store with the model.
            keras_path: The same model for Keras, stored beside it.

        Returns:
            Number of the new version.
        """
        model = onnx.load(onnx_path)
        # While MLflow records which variables of the environment a model reads, any other thread
        # that reads one can break its loop over them.
        MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING.set(False)
        with translate_errors():
            info = mlflow.onnx.log_model(
                model,
                name="model",
                run_id=self.run_id,
                registered_model_name=name,
                signature=infer_signature({"image": example}, {"probabilities": probabilities}),
                input_example={"image": example},
                metadata=dict(metadata),
                extra_files=[keras_path.as_uri()],
                save_as_external_data=False,
                onnx_execution_providers=["CPUExecutionProvider"],
                # Otherwise MLflow loads the model in a new process to find them out.
                pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in _MODEL_NEEDS],
            )
            version = str(info.registered_model_version)
            # MLflow writes the parsed model, whose bytes may differ from those of `onnx_path`.
            digest = hashlib.sha256(model.SerializeToString()).hexdigest()
            self._client.set_model_version_tag(name, version, DIGEST_TAG, digest)
            self._client.set_registered_model_alias(name, CHALLENGER, version)
        return version

    def registered_version(self, name: str) -> str | None:
        """Return the newest version of the model `name` that this run made, or None."""
        with translate_errors():
            found = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        versions = [int(version.version) for version in found if version.name == name]
        return str(max(versions)) if versions else None


def _metric_name(name: str) -> str:
    """Replace what MLflow rejects: names contain class names, which are names of folders."""
    return re.sub(r"[^/\w.\- :]", "_", name)


@contextmanager
def start_run(experiment: str, tags: Mapping[str, str], run_id: str | None = None) -> Iterator[Run]:
    """Open a run, and close it as FINISHED, FAILED or, on SIGINT or SIGTERM, KILLED.

    Args:
        experiment: Experiment of a new run; created if missing.
        tags: Tags to set on the run.
        run_id: Run to reopen; None creates a new one.

    Raises:
        TrackingError: the tracking store does not answer, or rejects the run.
    """
    run = _open_run(experiment, tags) if run_id is None else _reopen_run(run_id, tags)
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
    """Return the tag that gives a run this name."""
    return {MLFLOW_RUN_NAME: name}


def overview_tags(name: str, source: str, commit: str) -> dict[str, str]:
    """Return the tags by which MLflow's page shows what a run is.

    Args:
        name: Name of the run.
        source: The command that made it, in the column *Source*.
        commit: Its git commit, in the column *Version*; `unknown` for none.
    """
    tags = {
        MLFLOW_SOURCE_NAME: source,
        MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.JOB),
    }
    return name_tag(name) | tags | ({} if commit == "unknown" else {MLFLOW_GIT_COMMIT: commit})


def find_runs(experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Return the runs of an experiment that have these tags, the newest first."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    with translate_errors():
        connect()
        found = MlflowClient().search_runs(
            [find_or_create_experiment(experiment)],
            filter_string=wanted,
            order_by=["attributes.start_time DESC"],
        )
    return [Run(run.info.run_id) for run in found]


@contextmanager
def system_metrics(run_id: str, node: str) -> Iterator[None]:
    """Record this machine's load every ten seconds, as the run's `system/NODE/...` metrics.

    If the store fails, recording ends, but not the run. `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`
    changes the interval, in seconds.
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
    with translate_errors():
        connect()
        experiment_id = find_or_create_experiment(experiment)
        mlflow.set_experiment(experiment_id=experiment_id)
        return Run(MlflowClient().create_run(experiment_id, tags=dict(tags)).info.run_id)


def _reopen_run(run_id: str, tags: Mapping[str, str]) -> Run:
    run = Run(run_id)
    run.set_tags(tags)
    with translate_errors():
        # Otherwise the model would go to the default experiment, in the working directory.
        mlflow.set_experiment(experiment_id=MlflowClient().get_run(run_id).info.experiment_id)
    run.set_status("RUNNING")
    return run


def _close(run: Run, status: str) -> None:
    """Close a run; after an error, ignore a store that fails too."""
    with nullcontext() if status == "FINISHED" else suppress(TrackingError), translate_errors():
        MlflowClient().set_terminated(run.run_id, status)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which `ray job stop` sends, like Ctrl-C: unwind the stack."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
