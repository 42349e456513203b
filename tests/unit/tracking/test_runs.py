"""Runs in a real MLflow, on files of the test's own."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from mask_ray import tracking
from mask_ray.config import MaskRayError, tracking_uri
from mask_ray.tracking import Run, TrackingError, start_run
from tests.support.mlflow_models import register
from tests.support.onnx_files import write_classifier
from tests.support.project import ROOT


def stored(run_id: str) -> mlflow.entities.Run:
    return MlflowClient().get_run(run_id)


def artifact(run_id: str, name: str) -> Path:
    folder = unquote(urlparse(stored(run_id).info.artifact_uri).path)
    return Path(folder, name)


def test_a_run_that_ends_well_is_finished(store: None) -> None:
    with start_run("faces", {}) as run:
        assert stored(run.run_id).info.status == "RUNNING"

    info = stored(run.run_id).info
    assert info.status == "FINISHED"
    assert info.end_time >= info.start_time


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("out of range"), "FAILED"),
        (MaskRayError("no images"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_a_run_that_ends_badly_says_how(store: None, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)) as caught, start_run("faces", {}) as run:
        raise error

    assert caught.value is error
    assert stored(run.run_id).info.status == status


STOPPED_JOB = """
import os, signal, sys
from mask_ray import cli, tracking
from mask_ray.config import DataSettings

def job(settings):
    with tracking.start_run("faces", {}) as run:
        print(run.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

cli.connect = lambda instead: None
sys.argv = ["job", "--data", "photos"]
cli.main(DataSettings, job)
"""


def test_a_stopped_job_leaves_a_killed_run(store: None) -> None:
    """`ray job stop` sends SIGTERM."""
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_JOB], cwd=ROOT, capture_output=True, text=True
    )

    assert (ended.returncode, ended.stderr) == (
        130,
        "error: stopped: run the same command to begin again\n",
    )
    assert stored(ended.stdout.strip()).info.status == "KILLED"


def test_sigterm_means_what_it_meant_before_once_the_run_is_over(store: None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with start_run("faces", {}):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_keeps_what_is_logged(store: None) -> None:
    with start_run("faces", {"data_digest": "d1"}) as run:
        run.log_params({"num_workers": 2, "min_workers": None, "data": "photos"})
        run.log_metrics({"loss": 0.7, "accuracy": 0.5}, step=0)
        run.log_metrics({"loss": 0.2}, step=1)
        run.set_tags({"class_names": "a,b"})
        run.set_tags({"class_names": "c,d"})

    data = stored(run.run_id).data
    assert data.params == {"num_workers": "2", "min_workers": "None", "data": "photos"}
    assert data.metrics == {"loss": 0.2, "accuracy": 0.5}
    curve = MlflowClient().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(0, 0.7), (1, 0.2)]
    assert {"data_digest": "d1", "class_names": "c,d"}.items() <= data.tags.items()


def test_another_process_adds_to_a_run_by_its_id(store: None) -> None:
    with start_run("faces", {}) as run:
        Run(run.run_id).log_metrics({"val_loss": 0.25}, step=3)

    assert stored(run.run_id).data.metrics == {"val_loss": 0.25}


def test_runs_of_one_experiment_stay_together(store: None) -> None:
    experiments = []
    for name in ("faces", "faces", "dogs"):
        with start_run(name, {}) as run:
            experiments.append(stored(run.run_id).info.experiment_id)

    assert experiments[0] == experiments[1] != experiments[2]


def test_runs_below_a_run_are_found_again_with_their_curves(store: None) -> None:
    with start_run("faces", {}) as other:
        other.open_nested("trial-0", {})
    with start_run("faces", {}) as run:
        first, second = (run.open_nested(f"trial-{n}", {"trial": str(n)}) for n in range(2))
        first.log_metrics({"val_loss": 0.5}, step=1)
        first.log_metrics({"val_loss": 0.7}, step=0)
        first.log_metrics({"val_loss": 0.4}, step=1)
        first.set_status("FAILED")

    assert [found.run_id for found in run.nested()] == [first.run_id, second.run_id]
    assert second.tags()["trial"] == "1"
    assert second.tags()["mlflow.runName"] == "trial-1"
    assert first.history("val_loss") == {0: 0.7, 1: 0.4}
    assert second.history("val_loss") == {}
    assert (first.status(), second.status()) == ("FAILED", "RUNNING")
    first.set_status("RUNNING")
    assert first.status() == "RUNNING"


def test_files_are_kept_under_home_and_none_in_the_working_directory(
    store: None, home: Path, working_directory: Path, tmp_path: Path
) -> None:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])

    with start_run("faces", {}) as run:
        run.log_json({"broken.jpg": "truncated"}, "bad_files.json")
        run.log_figure(figure, "roc.png")
        register(run, tmp_path)

    bad_files, roc = (artifact(run.run_id, name) for name in ("bad_files.json", "roc.png"))
    assert home / "mlartifacts" in bad_files.parents
    assert json.loads(bad_files.read_text()) == {"broken.jpg": "truncated"}
    with Image.open(roc) as image:
        assert (image.format, image.size) == ("PNG", (200, 100))
    assert {path.name for path in home.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list(working_directory.iterdir()) == []


def test_a_store_of_the_users_own_is_used(
    home: Path,
    new_store: Path,
    tmp_path: Path,
    working_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(new_store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")

    with start_run("faces", {}) as run:
        run.log_json([], "bad_files.json")

    assert stored(run.run_id).info.status == "FINISHED"
    assert tracking_uri() == f"sqlite:///{tmp_path}/other.db"
    assert artifact(run.run_id, "bad_files.json").is_file()
    assert not (home / "mlflow.db").exists()
    assert list(working_directory.iterdir()) == []


class TestResumedRun:
    def test_is_the_same_run_going_on_to_another_end(self, store: None) -> None:
        with pytest.raises(KeyboardInterrupt), start_run("faces", {"git_commit": "a"}) as run:
            run.log_metrics({"loss": 0.7}, step=0)
            raise KeyboardInterrupt
        assert run.status() == "KILLED"

        with start_run("others", {"git_commit": "b"}, run.run_id) as resumed:
            assert resumed.run_id == run.run_id
            assert resumed.status() == "RUNNING"
            resumed.log_metrics({"loss": 0.2}, step=1)

        ended = stored(run.run_id)
        assert ended.info.status == "FINISHED"
        assert ended.info.end_time >= ended.info.start_time
        assert ended.data.tags["git_commit"] == "b"
        assert mlflow.get_experiment(ended.info.experiment_id).name == "faces"
        curve = MlflowClient().get_metric_history(run.run_id, "loss")
        assert [(point.step, point.value) for point in curve] == [(0, 0.7), (1, 0.2)]

    def test_that_ends_badly_says_how(self, store: None) -> None:
        with start_run("faces", {}) as run:
            pass
        with pytest.raises(MaskRayError), start_run("faces", {}, run.run_id):
            raise MaskRayError("no room")
        assert run.status() == "FAILED"

    def test_that_is_not_there_is_named(self, store: None) -> None:
        unknown = "0" * 32
        with pytest.raises(TrackingError, match=f"{tracking_uri()} fails: .*{unknown}"):
            start_run("faces", {}, unknown).__enter__()


def test_json_comes_back_as_it_was_stored(store: None) -> None:
    content = {"data": "/a b/ü", "min_workers": None, "alpha": 0.35, "resume": [1, "2"]}
    with start_run("faces", {}) as run:
        run.log_json(content, "settings.json")
    assert Run(run.run_id).load_json("settings.json") == content


def test_json_that_was_never_stored_is_named(store: None) -> None:
    with start_run("faces", {}) as run:
        with pytest.raises(TrackingError, match=r"settings\.json") as told:
            run.load_json("settings.json")
        assert "\n" not in str(told.value)


def test_a_file_is_kept_under_its_name(store: None, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_text("[]")
    with start_run("faces", {}) as run:
        run.log_file(path)
    assert artifact(run.run_id, "timeline.json").read_text() == "[]"


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def assert_names_the_store(told: BaseException, uri: str) -> None:
    assert str(told).startswith(f"the tracking store {uri} fails: ")
    assert len(str(told)) > len(f"the tracking store {uri} fails: ")
    assert "\n" not in str(told)


# Nothing listens there.
NO_SERVER = "http://127.0.0.1:9"


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("uri", [NO_SERVER, "nonsense://store"])
@pytest.mark.parametrize("run_id", [None, "0" * 32], ids=["new", "resumed"])
def test_a_store_that_cannot_be_used_is_named(
    uri: str, run_id: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as told:
        start_run("faces", {}, run_id).__enter__()
    assert_names_the_store(told.value, uri)


@pytest.mark.parametrize("run_id", [None, "0" * 32], ids=["new", "resumed"])
def test_a_home_that_cannot_be_made_is_named(home: Path, run_id: str | None) -> None:
    home.write_text("in the way")
    with pytest.raises(TrackingError) as told:
        start_run("faces", {}, run_id).__enter__()
    assert_names_the_store(told.value, f"sqlite:///{home}/mlflow.db")
    assert "File exists" in str(told.value)


USES: dict[str, Callable[[Run, Path], Any]] = {
    "status": lambda run, folder: run.status(),
    "log_params": lambda run, folder: run.log_params({"seed": 0}),
    "log_metrics": lambda run, folder: run.log_metrics({"loss": 0.5}),
    "set_tags": lambda run, folder: run.set_tags({"git_commit": "a"}),
    "log_json": lambda run, folder: run.log_json({}, "settings.json"),
    "load_json": lambda run, folder: run.load_json("settings.json"),
    "has_file": lambda run, folder: run.has_file("settings.json"),
    "registered_version": lambda run, folder: run.registered_version("faces"),
    "log_file": lambda run, folder: run.log_file(write_classifier(folder / "model.onnx")),
    "log_figure": lambda run, folder: run.log_figure(Figure(), "roc.png"),
    "register_model": lambda run, folder: register(run, folder),
}


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("use", USES)
def test_a_server_that_is_gone_is_named_whatever_is_asked_of_it(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    with pytest.raises(TrackingError) as told:
        USES[use](Run("0" * 32), tmp_path)
    assert_names_the_store(told.value, NO_SERVER)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("error", [MaskRayError("no room"), KeyboardInterrupt()])
def test_a_store_that_goes_away_hides_no_error(store: None, error: BaseException) -> None:
    with pytest.raises(type(error)) as told, start_run("faces", {}):
        mlflow.set_tracking_uri(NO_SERVER)
        raise error
    assert told.value is error


@pytest.mark.usefixtures("no_retries")
def test_a_store_that_goes_away_before_the_end_is_an_error(store: None) -> None:
    with pytest.raises(TrackingError), start_run("faces", {}):
        mlflow.set_tracking_uri(NO_SERVER)


@pytest.mark.parametrize(
    "uri", ["", "sqlite:////data/mlflow.db", "postgresql://db/mlflow", "/data/mlruns"]
)
def test_several_nodes_need_a_server(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.check_shared(num_nodes=1)
    with pytest.raises(TrackingError, match="a cluster of 2 nodes needs a tracking server") as told:
        tracking.check_shared(num_nodes=2)
    assert str(told.value).endswith(
        f"set MLFLOW_TRACKING_URI to http(s)://...; got {tracking_uri()}"
    )


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "https://mlflow.example", "databricks", "databricks://team"]
)
def test_several_nodes_share_a_server(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.check_shared(num_nodes=2)
    assert tracking_uri() == uri


def test_the_state_of_runs_is_for_its_owner_alone(home: Path) -> None:
    tracking.store.connect()

    assert home.stat().st_mode & 0o777 == (home / "mlartifacts").stat().st_mode & 0o777 == 0o700
    assert (home / "mlflow.db").stat().st_mode & 0o777 == 0o600


def test_an_error_of_the_store_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:s3cret@127.0.0.1:1/runs")

    with pytest.raises(TrackingError) as caught, tracking.store.translate_errors():
        raise OSError("no answer of postgresql://me:s3cret@127.0.0.1:1/runs for s3cret")
    assert str(caught.value) == (
        "the tracking store postgresql://***@127.0.0.1:1/runs fails: "
        "no answer of postgresql://***@127.0.0.1:1/runs for ***"
    )


def test_a_run_is_listed_with_its_name_source_and_data(store: None) -> None:
    tags = tracking.overview_tags("train photos 2026-01-02", "python -m jobs.train", "abc")
    with start_run("faces", tags) as run:
        run.describe("2 classes")
        run.log_dataset("photos", "0" * 64, "/data/photos", {"num_images": {"train": 7}})
    found = stored(run.run_id)
    assert found.info.run_name == "train photos 2026-01-02"
    assert found.data.tags["mlflow.source.name"] == "python -m jobs.train"
    assert found.data.tags["mlflow.source.git.commit"] == "abc"
    assert found.data.tags["mlflow.note.content"] == "2 classes"
    assert found.inputs is not None
    (dataset,) = (each.dataset for each in found.inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("photos", "0" * 8)
    assert "mlflow.source.git.commit" not in tracking.overview_tags("a", "b", "unknown")


def test_a_run_s_list_is_a_page_of_training(store: None) -> None:
    with start_run("faces", {}) as run:
        experiment: Any = mlflow.get_experiment_by_name("faces")
        path = run.list_path()
    assert path == f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"


@pytest.mark.parametrize("is_older", [False, True])
def test_an_experiment_opens_with_its_runs(store: None, is_older: bool) -> None:
    if is_older:
        with start_run("other", {}):
            mlflow.create_experiment("faces")
    with start_run("faces", {}):
        pass
    experiment: Any = mlflow.get_experiment_by_name("faces")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
