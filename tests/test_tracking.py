"""Runs and models in a real MLflow, on files of the test's own."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from mlflow import MlflowClient
from onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier
from PIL import Image

import mask_ray
from mask_ray import tracking
from mask_ray.config import MaskRayError, tracking_uri
from mask_ray.predictor import Predictor
from mask_ray.tracking import ModelNotFoundError, Run, TrackingError, resolve_model, start_run

NAME = "mask-detector"
METADATA = {"class_names": list(CLASS_NAMES), "image_size": IMAGE_SIZE, "git_commit": "abc"}
EXAMPLE = np.random.default_rng(2).integers(0, 256, (1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store. To make one takes MLflow two seconds; each test gets a copy."""
    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        with pytest.raises(ModelNotFoundError):
            resolve_model("models:/nothing@champion")
    return home / "mlflow.db"


@pytest.fixture
def store(home: Path, new_store: Path) -> None:
    home.mkdir()
    shutil.copy(new_store, home)
    # The store that this process has in mind is another test's.
    mlflow.set_tracking_uri(tracking_uri())


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def register(run: Run, folder: Path, **given: Any) -> str:
    onnx_path = write_classifier(folder / "model.onnx")
    keras_path = folder / "model.keras"
    keras_path.write_bytes(b"the same model for Keras")
    options = {
        "name": NAME,
        "example": EXAMPLE,
        "probabilities": Predictor(onnx_path).predict(EXAMPLE),
        "metadata": METADATA,
        "keras_path": keras_path,
    }
    return run.register_model(onnx_path, **options | given)


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

cli._connect = lambda: None
sys.argv = ["job", "--data", "photos"]
cli.main(DataSettings, job)
"""


def test_a_stopped_job_leaves_a_killed_run(store: None) -> None:
    """`ray job stop` sends SIGTERM."""
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_JOB], cwd=ROOT, capture_output=True, text=True
    )

    assert (ended.returncode, ended.stderr) == (130, "error: stopped\n")
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


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://store"])
def test_a_store_that_cannot_be_used_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=f"no run can be opened in {uri}: "):
        start_run("faces", {}).__enter__()


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


class Registry(NamedTuple):
    """A store with two versions of one model, of the same run."""

    home: Path
    run_id: str


@pytest.fixture(scope="module")
def registry(new_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(new_store, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        with start_run("faces", {}) as run:
            files = tmp_path_factory.mktemp("files")
            versions = [register(run, files), register(run, files)]
    assert versions == ["1", "2"]
    return Registry(home, run.run_id)


@pytest.fixture
def in_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("MASK_RAY_HOME", str(registry.home))
    mlflow.set_tracking_uri(tracking_uri())
    return registry


def test_the_last_registered_version_is_the_champion(in_registry: Registry) -> None:
    client = MlflowClient()
    assert client.get_model_version_by_alias(NAME, "champion").version == 2
    assert [v.version for v in client.search_model_versions(f"name='{NAME}'")] == [2, 1]
    assert client.get_model_version(NAME, "2").run_id == in_registry.run_id


def test_a_registered_model_explains_itself(in_registry: Registry) -> None:
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")

    (image,) = info.signature.inputs.inputs
    assert (image.name, image.type, image.shape) == (
        "image",
        np.dtype("uint8"),
        (-1, IMAGE_SIZE, IMAGE_SIZE, 3),
    )
    (probabilities,) = info.signature.outputs.inputs
    assert (probabilities.name, probabilities.type, probabilities.shape) == (
        "probabilities",
        np.dtype("float32"),
        (-1, len(CLASS_NAMES)),
    )
    assert info.metadata == METADATA
    assert info.run_id == in_registry.run_id


def test_a_registered_model_has_its_input_example(in_registry: Registry) -> None:
    folder = resolve_model(f"models:/{NAME}@champion").path.parent
    example = mlflow.models.Model.load(folder).load_input_example(str(folder))
    np.testing.assert_array_equal(example["image"], EXAMPLE)


def test_a_registered_model_has_the_keras_file_beside_it(in_registry: Registry) -> None:
    folder = resolve_model(f"models:/{NAME}@champion").path.parent
    (keras_file,) = folder.rglob("*.keras")
    assert keras_file.read_bytes() == b"the same model for Keras"


@pytest.mark.parametrize(
    ("uri", "version"), [("@champion", "2"), ("/1", "1"), ("/2", "2"), ("/latest", "2")]
)
def test_a_model_is_found_by_alias_and_by_version(
    in_registry: Registry, uri: str, version: str
) -> None:
    model = resolve_model(f"models:/{NAME}{uri}")

    assert (model.name, model.version) == (NAME, version)
    assert Predictor(model.path).class_names == CLASS_NAMES


def test_a_model_is_found_by_its_run(in_registry: Registry) -> None:
    uri = f"runs:/{in_registry.run_id}/model"

    model = resolve_model(uri)

    assert (model.name, model.version) == (uri, None)
    assert Predictor(model.path).class_names == CLASS_NAMES


def test_a_model_is_found_by_the_path_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    path = write_classifier(folder / "tiny.onnx")
    monkeypatch.chdir(folder)

    for uri in (str(path), "tiny.onnx", path.as_uri()):
        assert resolve_model(uri) == tracking.ResolvedModel(path, name="tiny", version=None)


@pytest.mark.parametrize(
    "uri",
    [
        f"models:/{NAME}@challenger",
        f"models:/{NAME}/99",
        "models:/cats@champion",
        "models:/cats",
        "runs:/nothing/model",
        "nonsense://models/1",
    ],
)
def test_a_missing_model_is_told_how_to_make_one(in_registry: Registry, uri: str) -> None:
    with pytest.raises(ModelNotFoundError) as told:
        resolve_model(uri)
    assert str(told.value).startswith(f"no model {uri} in sqlite:///{in_registry.home}/mlflow.db (")
    assert "`ray job submit --working-dir . -- python -m jobs.train --data DIR`" in str(told.value)


@pytest.mark.parametrize("uri", ["missing.onnx", "mask-detector@champion", "."])
def test_a_missing_file_is_told_what_is_allowed(uri: str, working_directory: Path) -> None:
    with pytest.raises(ModelNotFoundError) as told:
        resolve_model(uri)
    assert str(told.value) == (
        "model_uri must be an MLflow model URI (models:/name@alias) or an .onnx file; "
        f"there is no file {working_directory / uri}"
    )


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the package in it, which stands for the one that is imported."""
    folder = tmp_path / "checkout"
    package = folder / "mask_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "First")
    git(folder, "tag", "v1")
    monkeypatch.setattr(mask_ray, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(tracking, "_installed_from", lambda: None)
    return folder


def test_the_commit_is_the_checkouts(checkout: Path) -> None:
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")


def test_changed_code_is_dirty_and_other_files_are_not(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not of the repository")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")

    (checkout / "mask_ray" / "__init__.py").write_text("changed = True")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_copy_is_compared_with_the_checkout_it_was_installed_from(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout / "mask_ray", copy / "mask_ray")
    monkeypatch.setattr(mask_ray, "__file__", str(copy / "mask_ray" / "__init__.py"))
    assert tracking.git_commit() == "unknown"

    monkeypatch.setattr(tracking, "_installed_from", lambda: checkout)
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")

    (copy / "mask_ray" / "__init__.py").write_text("changed = True")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_without_git_the_commit_is_unknown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tracking.git_commit() == "unknown"


def test_the_environment_overrides_the_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK_RAY_GIT_COMMIT", "release-7")
    assert tracking.git_commit() == "release-7"
