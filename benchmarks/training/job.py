"""One training job, submitted as a user would, and what its run in MLflow says of its time."""

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks import ROOT
from benchmarks.support.cluster import Cluster
from mask_ray.config import MaskRayError


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run."""

    seconds: float
    val_accuracy: float
    ended: float


@dataclass(frozen=True)
class Job:
    """A finished job.

    Args:
        seconds: From `ray job submit` until it returned.
        features_s: What making or finding the features took.
        epochs: In order.
        stages: Seconds of the whole command by what it did, in order.
        test_accuracy: Of the file that it registered.
    """

    seconds: float
    features_s: float
    epochs: list[Epoch]
    stages: dict[str, float]
    test_accuracy: float


def submit(cluster: Cluster, flags: Mapping[str, Any], log: Path) -> Job:
    """Run `ray job submit --working-dir . -- python -m jobs.train` to its end.

    Args:
        cluster: Where, on this machine.
        flags: Of `jobs.train`, by name.
        log: File for what the command prints.

    Raises:
        MaskRayError: the job failed; the message names the log.
    """
    train = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = ["ray", "job", "submit", f"--address={cluster.dashboard}", "--working-dir", "."]
    command += ["--", "python", "-m", "jobs.train", *train]
    began = time.time()
    driver_began, result = began, ""
    with (
        log.open("w") as kept,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as client,
    ):
        assert client.stdout is not None
        for line in client.stdout:
            kept.write(f"{time.time() - began:6.1f} {line}")
            if "MLflow run" in line:
                driver_began = began + _started_after(client, cluster.environment["MASK_RAY_HOME"])
            result = line if line.startswith('{"run_id"') else result
    ended = time.time()
    if client.returncode or not result:
        raise MaskRayError(f"the training job did not succeed; see {log}")
    return _read(cluster, json.loads(result), began, driver_began, ended)


def _started_after(client: subprocess.Popen[str], home: str) -> float:
    """Seconds from the start of `ray job submit` to that of the job's own process."""
    submitted = psutil.Process(client.pid).create_time()
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if (process.info["cmdline"] or [])[1:3] == ["-m", "jobs.train"]:
            with suppress(psutil.Error):
                if process.environ().get("MASK_RAY_HOME") == home:
                    return float(process.info["create_time"] - submitted)
    raise MaskRayError("the job's process is not on this machine")


def _read(
    cluster: Cluster, result: dict[str, Any], began: float, driver_began: float, ended: float
) -> Job:
    uri = f"sqlite:///{cluster.environment['MASK_RAY_HOME']}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(result["run_id"])
    epochs = _epochs(client, result["run_id"])
    (data_read,) = client.get_metric_history(result["run_id"], "num_bad_files")
    seconds = run.data.metrics
    stages = _stages(run, epochs, data_read.timestamp / 1000, began, driver_began, ended)
    return Job(
        seconds=ended - began,
        features_s=seconds["seconds_features"],
        epochs=epochs,
        stages=stages,
        test_accuracy=result["test"]["accuracy"],
    )


def _epochs(client: MlflowClient, run_id: str) -> list[Epoch]:
    seconds = client.get_metric_history(run_id, "epoch_seconds")
    accuracies = client.get_metric_history(run_id, "val_accuracy")
    return [
        Epoch(duration.value, accuracy.value, duration.timestamp / 1000)
        for duration, accuracy in zip(
            sorted(seconds, key=_step), sorted(accuracies, key=_step), strict=True
        )
    ]


def _step(metric: Any) -> int:
    return int(metric.step)


def _stages(
    run: Run, epochs: list[Epoch], data_read: float, began: float, driver_began: float, ended: float
) -> dict[str, float]:
    """From stamps of this process, of MLflow and of the job's own clock, all of one machine."""
    seconds = run.data.metrics
    features_done = data_read + seconds["seconds_features"]
    training_began = epochs[0].ended - epochs[0].seconds
    trained = data_read + seconds["seconds_train"]
    evaluated = trained + seconds["seconds_evaluate"]
    points = {
        "submission, until the job's process starts": driver_began,
        "its imports and connections, until the MLflow run is open": run.info.start_time / 1000,
        "reading, decoding and splitting the photos": data_read,
        "features": features_done,
        "start of the workers": training_began,
        "epochs": epochs[-1].ended,
        "last checkpoint, model files, end of the workers": trained,
        "evaluation of the ONNX file": evaluated,
        "registration": run.info.end_time / 1000,
        "end of the job, until the command returns": ended,
    }
    stages, before = {}, began
    for name, when in points.items():
        stages[name], before = when - before, when
    return stages
