"""Models in a real MLflow registry: what is kept with them, and how they are found."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mask_ray import tracking
from mask_ray.config import tracking_uri
from mask_ray.models.predictor import Predictor
from mask_ray.tracking import ModelNotFoundError, resolve_model, start_run
from tests.support.mlflow_models import EXAMPLE, METADATA, NAME, register
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier


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


def test_versions_are_those_of_their_run(in_registry: Registry) -> None:
    client = MlflowClient()
    assert [v.version for v in client.search_model_versions(f"name='{NAME}'")] == [2, 1]
    assert client.get_model_version(NAME, "2").run_id == in_registry.run_id


def test_a_refusal_is_kept_with_its_version_until_it_is_forgotten(in_registry: Registry) -> None:
    tracking.keep_refusal(NAME, "1", "it was slow")
    kept = tracking.refusal(NAME, "1")
    assert kept == ("it was slow; to have it tried again, run `python -m jobs.promote 1 --force`")
    assert tracking.refusal(NAME, "2") is None
    for _ in range(2):
        tracking.forget_refusal(NAME, "1")
        assert tracking.refusal(NAME, "1") is None


def test_a_run_knows_the_newest_version_that_it_made(in_registry: Registry) -> None:
    assert tracking.Run(in_registry.run_id).registered_version(NAME) == "2"
    assert tracking.Run(in_registry.run_id).registered_version("cats") is None


def test_aliases_name_versions(in_registry: Registry) -> None:
    assert tracking.aliases(NAME) == {"champion": "2"}
    assert tracking.aliases("cats") == {}


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
    example: Any = mlflow.models.Model.load(folder).load_input_example(str(folder))
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


def test_the_environment_is_as_it_was_while_a_model_is_registered(
    store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would replace `os.environ.get` for all threads, and fail if another one calls it."""
    monkeypatch.delenv("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", raising=False)
    own = os._Environ.get
    seen: list[Any] = []
    look: Any = lambda **given: seen.append(os._Environ.get)  # noqa: E731
    monkeypatch.setattr("mlflow.models.utils._validate_serving_input", look)
    with start_run("faces", {}) as run:
        register(run, tmp_path)
    assert seen == [own]


def test_a_version_has_the_digest_of_its_file(in_registry: Registry) -> None:
    path = resolve_model(f"models:/{NAME}/2").path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert tracking.RegisteredModel(NAME).version_tags("2")["onnx_sha256"] == digest


@pytest.fixture
def own_registry(
    registry: Registry, home: Path, store: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The same versions, in a store that the test may change, and that counts as a server."""
    shutil.copy(registry.home / "mlflow.db", home)
    monkeypatch.setattr("mask_ray.tracking.registry.is_server", lambda: True)
    return home


def test_a_file_that_is_not_the_registered_one_is_rejected(own_registry: Path) -> None:
    MlflowClient().set_model_version_tag(NAME, "2", "onnx_sha256", "0" * 64)
    with pytest.raises(tracking.ModelDamagedError, match=f"the file of models:/{NAME}/2 must"):
        resolve_model(f"models:/{NAME}/2")
    assert not list((own_registry / "models").rglob("*.onnx"))


def test_a_file_that_has_changed_where_it_is_stored_is_rejected(
    own_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask_ray.tracking.registry.is_server", lambda: False)
    MlflowClient().set_model_version_tag(NAME, "2", "onnx_sha256", "0" * 64)
    with pytest.raises(tracking.ModelDamagedError):
        resolve_model(f"models:/{NAME}/2")


class Away:
    """A registry that does not answer, and counts who asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        monkeypatch.setattr(MlflowClient, "get_model_version", self._fail)
        monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", self._fail)

    def _fail(self, *given: Any) -> Any:
        self.asked += 1
        raise MlflowException("API request failed with exception Connection refused")


def test_a_kept_version_is_found_while_the_registry_is_away(
    own_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = resolve_model(f"models:/{NAME}@champion")
    assert (own_registry / "models") in kept.path.parents
    away = Away(monkeypatch)

    assert resolve_model(f"models:/{NAME}/2", prefer_kept=True) == kept
    assert away.asked == 0
    assert resolve_model(f"models:/{NAME}/2") == kept
    assert away.asked == 1


def test_an_unreachable_registry_is_told_apart_from_an_absent_model(
    own_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no model models:/{NAME}/99"):
        resolve_model(f"models:/{NAME}/99")
    Away(monkeypatch)
    for uri in (f"models:/{NAME}/1", f"models:/{NAME}@champion"):
        with pytest.raises(tracking.UnreachableError) as told:
            resolve_model(uri)
        assert f"does not answer, and {uri} is not kept on this machine" in str(told.value)
        assert "no model" not in str(told.value)


def test_a_download_leaves_nothing_but_the_kept_model(
    own_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    kept = resolve_model(f"models:/{NAME}/2").path
    assert list(temporary.iterdir()) == []
    assert [path.name for path in kept.parent.parent.iterdir()] == [kept.parent.name]
