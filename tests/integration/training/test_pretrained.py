"""A run from ImageNet weights with every flag of Horovod, and the same run from its own record.

The first leaves its features in the cache; the second computes them again.
"""

from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import onnx
import pandas as pd
import pytest
import ray.train
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mask_ray import data, tracking
from mask_ray.config import tracking_uri
from mask_ray.images import synthetic
from mask_ray.models.quantize import Figures, reason_against
from mask_ray.training import workers
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
    return ["--data", str(photos), "--batch-size", "16", "--no-data-report", *small, *weighted]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line for each report of the first run: its epoch, and whether it has a checkpoint."""
    return tmp_path_factory.mktemp("reports") / "reports"


@pytest.fixture(scope="module")
def first(cluster: dict[str, str], flags: list[str], reports: Path) -> Job:
    """Two workers, every flag of Horovod, an int8 candidate, a checkpoint after each epoch."""
    every = (
        "--num-workers 2 --gradient-compression fp16 --fusion-threshold-mb 1 --cycle-time-ms 2 "
        "--accumulate-steps 2 --scale-learning-rate --warmup-epochs 1 --precision bfloat16 "
        "--timeline --quantize --checkpoint-every-s 0 --seed 5"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "trainer", partial(workers.trainer, callbacks=[noting(reports)]))
        job = run_here("jobs.train", *flags, *every.split(), env=cluster)
    assert job.returncode == 0, job.log[-3000:]
    return job


def noting(reports: Path) -> ray.train.UserCallback:
    # Defined here, it travels by value: the controller cannot import this module.
    class NoteReports(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            with reports.open("a") as file:
                file.write(f"{metrics[0].get('epoch')} {checkpoint is not None}\n")

    return NoteReports()


@pytest.fixture(scope="module")
def again(cluster: dict[str, str], first: Job) -> Job:
    own = ["--no-feature-cache", "--no-quantize", "--tensorboard", "--register-as", "again"]
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "2"}
    job = run_here("jobs.train", "--from-run", first.run_id, *own, env=cluster | often)
    assert job.returncode == 0, job.log[-3000:]
    return job


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


def test_a_run_without_the_cache_leaves_no_features(again: Job, home: Path) -> None:
    # Those of the run before.
    assert len(list((home / "features").glob("*/key.json"))) == 1
    assert not (home / "train" / f"{again.run_id}.features").exists()


def test_every_epoch_has_a_checkpoint_if_none_need_wait(first: Job, reports: Path) -> None:
    assert first.returncode == 0
    # The last one, with the model, is of the last epoch.
    assert reports.read_text().split("\n") == [*(f"{n} True" for n in (1, 2, 3, 4, 4)), ""]


def test_horovod_s_timeline_is_kept(first: Job) -> None:
    mlflow.set_tracking_uri(tracking_uri())
    timeline = mlflow.artifacts.load_text(f"runs:/{first.run_id}/timeline.json")
    assert "ALLREDUCE" in timeline


def test_the_served_file_is_int8_where_that_is_as_good_and_faster(first: Job) -> None:
    result = first.result
    mlflow.set_tracking_uri(tracking_uri())
    info: Any = mlflow.models.get_model_info(result["model_uri"])
    told = info.metadata["quantization"]
    against = reason_against(Figures(**told["float32"]), Figures(**told["int8"]))
    assert told["served"] == ("int8" if against is None else "float32")
    assert f"int8 is {'not ' if against else ''}used: " in first.log
    assert result["test"]["accuracy"] == told[told["served"]]["accuracy"]
    metrics = load(first).data.metrics
    for name in ("float32", "int8"):
        assert metrics[f"{name}_accuracy"] == told[name]["accuracy"]
        assert metrics[f"{name}_images_per_second"] == told[name]["images_per_second"]
    weights = onnx.load(tracking.resolve_model(result["model_uri"]).path).graph.initializer
    has_bytes = any(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)
    assert has_bytes == (against is None)


def test_every_epoch_of_the_run_made_again_has_the_same_figures(first: Job, again: Job) -> None:
    assert again.run_id != first.run_id
    assert curves(again) == curves(first)
    # The first may serve its int8 candidate.
    assert again.result["test"]["accuracy"] == load(first).data.metrics["float32_accuracy"]


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
