"""A registry with five versions, and the images that they are compared on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask_ray.evaluation import grounds
from mask_ray.evaluation.grounds import HeldOutImages
from mask_ray.models.predictor import Predictor
from mask_ray.tracking import start_run
from tests.support.mlflow_models import register
from tests.support.onnx_files import CLASS_NAMES, write_classifier
from tests.support.promotion_images import Runs, noise, rows, run_images


@pytest.fixture(scope="session")
def registry(new_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with versions 1 to 5 of one run each; 2 takes another size, 4 has other classes. To
    register them takes MLflow seconds; each test gets a copy of the store.
    """
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(new_store, home)
    write_classifier(home / "1.onnx", seed=1)
    write_classifier(home / "2.onnx", seed=2, image_size=48)
    write_classifier(home / "3.onnx", seed=3)
    write_classifier(home / "4.onnx", class_names=("cat", "dog"))
    write_classifier(home / "5.onnx", seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        for version in "12345":
            path = home / f"{version}.onnx"
            size = Predictor(path).image_size
            example = np.zeros((1, size, size, 3), np.uint8)
            folder = home / version
            folder.mkdir()
            with start_run("faces", {}) as run:
                assert register(run, folder, path, champion=False, example=example) == version
    return home


@pytest.fixture
def files(registry: Path, home: Path, store: None) -> dict[str, Path]:
    """The file of each registered version."""
    shutil.copy(registry / "mlflow.db", home)
    return {version: registry / f"{version}.onnx" for version in "12345"}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(grounds, "load_run_images", runs.load)
    monkeypatch.setattr(grounds, "dataset_of", runs.dataset_of)
    return runs


@pytest.fixture
def labelled_as(runs: Runs) -> Callable[..., HeldOutImages]:
    """Makes forty images, labelled as a model predicts except for some; all runs tested on them."""

    def labelled(path: Path, num_wrong: int = 0) -> HeldOutImages:
        predictor = Predictor(path)
        own = predictor.predict(noise(predictor.image_size, 40)).argmax(axis=1)
        own[:num_wrong] = 1 - own[:num_wrong]
        labels = own.tolist()
        runs.given = run_images(labels)
        return HeldOutImages(lambda size: rows(size, labels), list(CLASS_NAMES), "d1")

    return labelled
