"""Runs from ImageNet weights, and one made again from its own record.

Three runs on the same photos: one with every flag of Horovod, which leaves its features in the
cache; one without the cache; and that one made again, with the first one's features.
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
def with_every_flag(cluster: dict[str, str], flags: list[str]) -> Job:
    """Two workers, every flag of Horovod, and an int8 candidate."""
    every = (
        "--num-workers 2 --gradient-compression fp16 --fusion-threshold-mb 1 --cycle-time-ms 2 "
        "--accumulate-steps 2 --scale-learning-rate --warmup-epochs 1 --precision bfloat16 "
        "--timeline --quantize --register-as every-flag --seed 5"
    )
    job = run_here("jobs.train", *flags, *every.split(), env=cluster)
    assert job.returncode == 0, job.log[-3000:]
    return job


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line for each report of the first run: its epoch, and whether it has a checkpoint."""
    return tmp_path_factory.mktemp("reports") / "reports"


@pytest.fixture(scope="module")
def first(cluster: dict[str, str], flags: list[str], reports: Path) -> Job:
    """On one worker, without the cache, with a checkpoint after each epoch."""
    own = ["--seed", "3", "--no-feature-cache", "--no-quantize", "--checkpoint-every-s", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "trainer", partial(workers.trainer, callbacks=[noting(reports)]))
        job = run_here("jobs.train", *flags, *own, env=cluster)
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
def again(cluster: dict[str, str], first: Job, with_every_flag: Job) -> Job:
    """Features of the cache are in the order of another run's seed, which must not matter."""
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


def test_a_run_without_the_cache_leaves_no_features(first: Job, home: Path) -> None:
    assert not (home / "features").exists()
    assert not (home / "train" / f"{first.run_id}.features").exists()


def test_every_epoch_has_a_checkpoint_if_none_need_wait(first: Job, reports: Path) -> None:
    assert first.returncode == 0
    # The last one, with the model, is of the last epoch.
    assert reports.read_text().split("\n") == [*(f"{n} True" for n in (1, 2, 3, 4, 4)), ""]


def test_horovod_s_timeline_is_kept(with_every_flag: Job) -> None:
    mlflow.set_tracking_uri(tracking_uri())
    timeline = mlflow.artifacts.load_text(f"runs:/{with_every_flag.run_id}/timeline.json")
    assert "ALLREDUCE" in timeline


def test_the_served_file_is_int8_where_that_is_as_good_and_faster(with_every_flag: Job) -> None:
    result = with_every_flag.result
    mlflow.set_tracking_uri(tracking_uri())
    info: Any = mlflow.models.get_model_info(result["model_uri"])
    told = info.metadata["quantization"]
    against = reason_against(Figures(**told["float32"]), Figures(**told["int8"]))
    assert told["served"] == ("int8" if against is None else "float32")
    assert f"int8 is {'not ' if against else ''}used: " in with_every_flag.log
    assert result["test"]["accuracy"] == told[told["served"]]["accuracy"]
    metrics = load(with_every_flag).data.metrics
    for name in ("float32", "int8"):
        assert metrics[f"{name}_accuracy"] == told[name]["accuracy"]
        assert metrics[f"{name}_images_per_second"] == told[name]["images_per_second"]
    weights = onnx.load(tracking.resolve_model(result["model_uri"]).path).graph.initializer
    has_bytes = any(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)
    assert has_bytes == (against is None)


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
