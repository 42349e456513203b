"""Temperatures inside model files, and the feature map before the head."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from mask_ray.models import onnx_export
from mask_ray.models.onnx_edit import keras_with_temperature, with_feature_map, with_temperature
from mask_ray.models.predictor import FeatureMaps, ModelFileError, Predictor
from mask_ray.models.quantize import quantize
from tests.support import onnx_files
from tests.support.backbone_weights import random_weights

NAMES = list(onnx_files.CLASS_NAMES)


def images(num: int = 6) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num, 96, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The narrowest network with random weights."""
    weights = random_weights(0.35)
    backbone = onnx_export.backbone_onnx(weights, image_size=96, alpha=0.35)
    kernel = np.random.default_rng(1).normal(size=(len(weights[-1]), 2)).astype("f4") / 20
    path = tmp_path_factory.mktemp("head") / "float32.onnx"
    path.write_bytes(onnx_export.classifier_onnx(backbone, kernel, np.array([0.3, 0], "f4"), NAMES))
    return path


@pytest.fixture(scope="module")
def int8(float32: Path) -> Path:
    path = float32.with_name("int8.onnx")
    quantize(float32, path, images())
    return path


def log_odds(path: Path) -> np.ndarray:
    first, second = Predictor(path).predict(images()).astype(np.float64).T
    return np.log(first / second)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_what_is_served_is_calibrated(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    (tmp_path / "model.onnx").write_bytes(with_temperature(path.read_bytes(), 2.5))

    assert Predictor(path).temperature == 1
    assert Predictor(tmp_path / "model.onnx").temperature == 2.5
    before, after = log_odds(path), log_odds(tmp_path / "model.onnx")
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(after, before / 2.5, atol=1e-4)


def test_int8_keeps_the_temperature_of_what_it_is_made_from(float32: Path, tmp_path: Path) -> None:
    calibrated, int8 = tmp_path / "calibrated.onnx", tmp_path / "int8.onnx"
    calibrated.write_bytes(with_temperature(float32.read_bytes(), 0.5))
    quantize(calibrated, int8, images())
    assert Predictor(int8).temperature == 0.5


def test_a_temperature_is_set_once(float32: Path) -> None:
    once = with_temperature(float32.read_bytes(), 2.0)
    with pytest.raises(ValueError, match="has a temperature already"):
        with_temperature(once, 2.0)


def test_only_a_dense_layer_has_a_temperature(tmp_path: Path) -> None:
    other = onnx_files.write_classifier(tmp_path / "other.onnx").read_bytes()
    with pytest.raises(ValueError, match="no dense layer before its softmax"):
        with_temperature(other, 2.0)
    assert with_feature_map(other) is None


def test_a_temperature_that_is_no_number_is_refused(tmp_path: Path) -> None:
    metadata = {"class_names": json.dumps(NAMES), "image_size": "32", "temperature": "warm"}
    path = onnx_files.write_classifier(tmp_path / "model.onnx", metadata=metadata)
    with pytest.raises(ModelFileError, match="temperature must be a number; got warm"):
        Predictor(path)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_head_averages_the_feature_map(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    found = with_feature_map(path.read_bytes())
    assert found is not None

    features = FeatureMaps(found.onnx).extract(images())

    assert features.shape == (6, 1280, 3, 3)
    logits = features.mean(axis=(2, 3)) @ found.kernel + [0.3, 0]
    np.testing.assert_allclose(logits[:, 0] - logits[:, 1], log_odds(path), atol=0.05)


def test_the_keras_file_is_scaled_in_its_last_layer_alone() -> None:
    names = ["hidden", "probabilities"]
    layers = [{"class_name": "Dense", "config": {"name": name}} for name in names]
    weights, archive = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        for layer in ("dense", "dense_1"):
            file[f"layers/{layer}/vars/0"] = np.array([[2.0, 4.0]], "f4")
            file[f"layers/{layer}/vars/1"] = np.array([6.0, 8.0], "f4")
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("config.json", json.dumps({"config": {"layers": layers}}))
        target.writestr("model.weights.h5", weights.getvalue())

    rewritten = keras_with_temperature(archive.getvalue(), 2.0)

    with zipfile.ZipFile(io.BytesIO(rewritten)) as found:
        assert found.namelist() == ["config.json", "model.weights.h5"]
        with h5py.File(io.BytesIO(found.read("model.weights.h5"))) as file:
            np.testing.assert_array_equal(file["layers/dense/vars/0"], [[2, 4]])
            np.testing.assert_array_equal(file["layers/dense_1/vars/0"], [[1, 2]])
            np.testing.assert_array_equal(file["layers/dense_1/vars/1"], [3, 4])
