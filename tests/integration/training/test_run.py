"""A whole training run: real Ray job, two Horovod workers, MLflow store, HTTP answers."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from mask_ray import tracking
from mask_ray.config import ImageLimits, tracking_uri
from mask_ray.images import synthetic
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from tests.support.demo_run import EPOCHS, NUM_IMAGES, DemoRun
from tests.support.ray_jobs import run_here


@pytest.fixture(scope="module")
def module_home(demo: DemoRun) -> Path:
    """The store of the demo."""
    return demo.home


@pytest.fixture
def home(module_home: Path) -> Path:
    """One store for all tests of this module."""
    return module_home


@pytest.fixture(scope="module")
def trained(demo: DemoRun) -> dict[str, Any]:
    """The result of a short run with two workers."""
    job = demo.job
    assert job.lines[-1].startswith('{"run_id"')
    return job.result | {"log": job.log}


@pytest.fixture
def run(trained: dict[str, Any], home: Path) -> Run:
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.get_run(trained["run_id"])


def test_the_result_holds_what_the_contract_names(trained: dict[str, Any]) -> None:
    assert trained["model_uri"] == "models:/mask-detector/1"
    assert trained["image_size"] == 96
    assert trained["test"]["num_images"] > 10
    assert 0 <= trained["test"]["accuracy"] <= 1
    assert set(trained["test"]["recall"]) == set(synthetic.CLASS_NAMES)
    assert set(trained["seconds"]) == {
        "data",
        "train",
        "evaluate",
        "total",
    }
    assert f"scratch {EPOCHS}/{EPOCHS}  loss" in trained["log"]


def test_the_run_is_finished_and_complete(run: Run, trained: dict[str, Any]) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params["num_workers"] == "2"
    assert run.data.params["seed"] == "0"
    assert len(run.data.tags["data_digest"]) == 64
    assert run.data.tags["git_commit"] and run.data.tags["ray_job_id"]
    assert run.data.metrics["test_accuracy"] == trained["test"]["accuracy"]
    assert run.data.metrics["seconds_train"] == trained["seconds"]["train"]
    counts = [v for k, v in run.data.metrics.items() if k.startswith("num_images_")]
    assert sum(counts) == NUM_IMAGES
    artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert artifacts >= {"confusion_matrix.png", "roc.png", "bad_files.json"}
    assert artifacts >= {"evaluation.html", "evaluation.json"}


def test_every_epoch_is_a_point_of_each_curve(run: Run) -> None:
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "images_per_second"):
        points = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == [*range(EPOCHS)]


def test_the_model_of_the_best_epoch_is_the_champion(run: Run, trained: dict[str, Any]) -> None:
    champion = tracking.resolve_model("models:/mask-detector@champion")
    assert champion.version == trained["model_version"]
    info = mlflow.models.get_model_info("models:/mask-detector@champion")
    assert info.run_id == run.info.run_id
    assert info.metadata is not None
    assert info.metadata["class_names"] == list(synthetic.CLASS_NAMES)
    assert info.metadata["data_digest"] == run.data.tags["data_digest"]
    assert info.metadata["temperature"] == Predictor(champion.path).temperature
    assert info.metadata["temperature"] == trained["test"]["temperature"] != 1
    assert (champion.path.parent / "extra_files" / "model.keras").is_file()


def test_evaluating_the_champion_again_gives_the_same_figures(
    trained: dict[str, Any], cluster: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("--data", f"synthetic:{NUM_IMAGES}", "--output", str(tmp_path / "report"))
    again = run_here("jobs.evaluate", *arguments, env=cluster).result
    figures = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert figures["accuracy"] == again["accuracy"]
    assert (tmp_path / "report" / "evaluation.html").stat().st_size > 10_000
    assert again["model"] == {"name": "mask-detector", "version": trained["model_version"]}
    for name in ("num_images", "accuracy", "recall"):
        assert again[name] == trained["test"][name]
    assert again["log_loss"] == pytest.approx(trained["test"]["log_loss"], abs=1e-5)


def test_the_champion_answers_over_http_as_it_does_offline(
    demo: DemoRun, trained: dict[str, Any]
) -> None:
    predictor = Predictor(tracking.resolve_model("models:/mask-detector@champion").path)
    assert len(demo.answers) == 2
    # The demo draws as many faces for its questions after those that it trains on.
    for index, answer in enumerate(demo.answers, NUM_IMAGES):
        encoded, _ = synthetic.encode(index)
        (expected,) = predictor.predict(decode_resized(encoded, 96, ImageLimits())[None])
        assert answer["model"] == {"name": "mask-detector", "version": trained["model_version"]}
        assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def folder_of(tmp_path: Path, contents: dict[str, bytes]) -> str:
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("flags", "contents", "message"),
    [
        (["--data", "/nowhere"], {}, "a source must be synthetic[:N], a folder, a .zip"),
        ([], {"only/1.jpg": b"x"}, "at least 2 folders of images"),
        ([], {f"{c}/{n}.jpg": b"x" for c in "ab" for n in range(9)}, "no readable images; 18"),
        (["--data", "synthetic", "--num-workers", "9"], {}, "at most the cluster's CPUs (2)"),
        (["--data", "synthetic", "--use-gpu"], {}, "at most the cluster's GPUs (0)"),
        (["--data", "synthetic", "--cpus-per-worker", "2"], {}, "must leave 0.5"),
        (["--data", "synthetic", "--resume", "0" * 32], {}, "the tracking store"),
        (["--data", "synthetic", "--image-size", "100"], {}, "must be one of 96, 128"),
    ],
    ids=["no folder", "one class", "unreadable", "workers", "gpu", "cpus", "resume", "setting"],
)
def test_a_mistake_ends_in_one_line_and_no_running_run(
    flags: list[str],
    contents: dict[str, bytes],
    message: str,
    cluster: dict[str, str],
    tmp_path: Path,
) -> None:
    data = ["--data", folder_of(tmp_path, contents)] if contents else []
    done = run_here("jobs.train", "--backbone-weights", "none", *data, *flags, env=cluster)
    assert done.returncode in (1, 2)
    assert len(done.errors) == 1 and message in done.errors[0]
    assert "Traceback" not in done.log
    mlflow.set_tracking_uri(tracking_uri())
    running = mlflow.search_runs(
        search_all_experiments=True, filter_string="attributes.status = 'RUNNING'"
    )
    assert len(running) == 0
