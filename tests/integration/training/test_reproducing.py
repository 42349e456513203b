"""A run made again from its own record: the same figures, to the digit, on one worker."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mask_ray import data
from mask_ray.config import tracking_uri
from mask_ray.images import synthetic
from tests.support.ray_jobs import Job, run_here

FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")


@pytest.fixture
def home(module_home: Path) -> Path:
    """One store for all tests of this module."""
    return module_home


@pytest.fixture(scope="module")
def flags(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    photos = tmp_path_factory.mktemp("photos")
    for index in range(120):
        encoded, class_name = synthetic.encode(index, seed=0)
        (photos / class_name).mkdir(exist_ok=True)
        (photos / class_name / f"{index}.jpg").write_bytes(encoded)
    (weights,) = (shared / "weights").glob("*_1.0_224_no_top.h5")
    small = ["--image-size", "96", "--head-epochs", "3", "--finetune-epochs", "1"]
    weighted = ["--backbone-weights", str(weights), "--finetune-from", "block_16"]
    weighted += ["--no-quantize", "--no-data-report"]
    return ["--data", str(photos), "--batch-size", "16", *small, *weighted]


@pytest.fixture(scope="module")
def first(cluster: dict[str, str], flags: list[str]) -> Job:
    """Without the cache, which holds features in the order of another run's seed afterwards."""
    job = run_here("jobs.train", *flags, "--seed", "3", "--no-feature-cache", env=cluster)
    other = run_here("jobs.train", *flags, "--seed", "5", "--finetune-epochs", "0", env=cluster)
    assert job.returncode == other.returncode == 0, job.log[-3000:] + other.log[-3000:]
    return job


@pytest.fixture(scope="module")
def again(cluster: dict[str, str], first: Job) -> Job:
    given = ["--from-run", first.run_id, "--feature-cache", "--tensorboard"]
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "2"}
    return run_here("jobs.train", *given, env=cluster | often)


def load(job: Job) -> Run:
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.get_run(job.run_id)


def curves(job: Job) -> dict[str, list[float]]:
    mlflow.set_tracking_uri(tracking_uri())
    client = mlflow.MlflowClient()
    return {
        name: [point.value for point in client.get_metric_history(job.run_id, name)]
        for name in FIGURES
    }


def test_every_epoch_has_the_same_figures_with_features_of_the_cache_too(
    first: Job, again: Job
) -> None:
    assert again.result["run_id"] != first.result["run_id"]
    assert "features: found in" in again.log and "features: found in" not in first.log
    assert curves(again) == curves(first)
    assert again.result["test"] == first.result["test"]


def test_a_line_says_that_nothing_else_differs(first: Job, again: Job) -> None:
    assert f"data, code, libraries and platform are those of run {first.run_id}" in again.log


def test_the_run_lists_its_files(again: Job) -> None:
    path = mlflow.artifacts.download_artifacts(
        run_id=load(again).info.run_id, artifact_path="files.parquet"
    )
    listed = pd.read_parquet(path)
    assert len(listed) == 120 and listed["digest"].str.len().eq(64).all()
    assert set(listed["split"]) == set(data.SPLITS)
    assert set(listed["error"]) == {""}


def test_the_run_says_what_it_was_made_by(again: Job) -> None:
    tags: dict[str, Any] = load(again).data.tags
    assert len(tags["lock_digest"]) == 64
    environment = mlflow.artifacts.load_dict(f"runs:/{again.run_id}/environment.json")
    assert {"ray", "keras", "horovod"} <= set(environment["libraries"])
    assert environment["nodes"][0]["CPU"] == 2


def test_the_node_is_watched_while_the_run_goes_on(again: Job) -> None:
    metrics = load(again).data.metrics
    assert 0 < metrics["system/node_0/cpu_utilization_percentage"] <= 100
    assert metrics["system/node_0/system_memory_usage_megabytes"] > 0
    assert "system/node_0/network_receive_megabytes" in metrics
    assert "system/node_0/disk_usage_percentage" in metrics


def test_tensorboard_shows_the_curves_that_mlflow_has(again: Job, home: Path) -> None:
    for folder in (
        home / "tensorboard" / again.run_id,
        Path(mlflow.artifacts.download_artifacts(f"runs:/{again.run_id}/tensorboard")),
    ):
        shown: dict[str, list[float]] = {}
        for split, prefix in (("train", ""), ("val", "val_")):
            events = EventAccumulator(str(folder / split)).Reload()
            for name in ("loss", "accuracy"):
                shown[prefix + name] = [
                    float(tensor_util.make_ndarray(point.tensor_proto))
                    for phase in ("head", "finetune")
                    for point in events.Tensors(f"{phase}/{name}")
                ]
        assert shown == {k: pytest.approx(v, rel=1e-6) for k, v in curves(again).items()}
