"""Features are what the Keras model makes of the same pixels, on a real Ray."""

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray

from mask_ray import data
from mask_ray.config import TrainSettings
from mask_ray.data import ImageData, dataset
from mask_ray.images import synthetic
from mask_ray.images.augment import augment
from mask_ray.images.decode import decode_resized
from mask_ray.models import onnx_export
from mask_ray.training import features
from mask_ray.training.features import prepare
from tests.support import keras_models

pytestmark = pytest.mark.usefixtures("ray_local")

SIZE = 96
NUM_VIEWS = 2
STRENGTH = 0.7
# Float16 keeps 11 bits; ONNX Runtime and TensorFlow differ by less.
TOLERANCE = 2**-11


@pytest.fixture
def home(module_home: Path) -> Path:
    """One cache for all tests of this module."""
    return module_home


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Forty drawn faces a class, and a file that is none."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(80):
        encoded, class_name = synthetic.encode(index, image_size=SIZE)
        path = root / class_name / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded)
    (root / synthetic.CLASS_NAMES[0] / "notes.txt").write_text("not a face")
    return TrainSettings(
        data=str(root),
        image_size=SIZE,
        alpha=0.35,
        augmented_views=NUM_VIEWS,
        augmentation=STRENGTH,
    )


@pytest.fixture(scope="module")
def model() -> keras.Model:
    faces = [decode_resized(synthetic.encode(index)[0], SIZE) for index in range(16)]
    return keras_models.build(np.stack(faces), num_classes=2)


@pytest.fixture(scope="module")
def backbone(settings: TrainSettings, model: keras.Model) -> bytes:
    weights = model.get_layer("backbone").get_weights()
    return onnx_export.backbone_onnx(weights, image_size=SIZE, alpha=settings.alpha)


@pytest.fixture(scope="module")
def images(ray_local: None, settings: TrainSettings) -> ImageData:
    return data.load(settings, SIZE)


def changed(settings: TrainSettings, **given: Any) -> TrainSettings:
    return TrainSettings(**settings.model_dump() | given)


@pytest.fixture
def folder(
    settings: TrainSettings, images: ImageData, backbone: bytes, home: Path, tmp_path: Path
) -> Path:
    own = tmp_path / "own"
    return prepare(settings, images, backbone, own_folder=own, num_cpus=2)


def rows_of(images: ImageData, split: str) -> list[dict[str, Any]]:
    rows = images.decoded(data.SPLITS).take_all()
    return [row for row in rows if row["split"] == split and not row["error"]]


def assert_equal_in_float16(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float16
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_are_those_of_the_keras_model(folder: Path, images: ImageData, model: keras.Model) -> None:
    for split in ("train", "val"):
        rows = rows_of(images, split)
        expected = keras_models.features_of(model, [row["image"] for row in rows])
        found = np.load(folder / f"{split}_features.npy")
        assert_equal_in_float16(found[:, 0], expected)
        labels = np.load(folder / f"{split}_labels.npy")
        assert labels.tolist() == [row["label"] for row in rows]


def test_of_views_are_those_of_the_augmented_images(
    folder: Path, images: ImageData, model: keras.Model
) -> None:
    rows = rows_of(images, "train")
    found = np.load(folder / "train_features.npy")
    assert found.shape[1] == 1 + NUM_VIEWS
    for view in range(1, 1 + NUM_VIEWS):
        augmented = [
            augment(image, np.random.default_rng([0, view, zlib.crc32(image.tobytes())]), STRENGTH)
            for image in (row["image"] for row in rows)
        ]
        assert_equal_in_float16(found[:, view], keras_models.features_of(model, augmented))
    assert np.load(folder / "val_features.npy").shape[1] == 1


def test_are_found_by_the_next_run(
    folder: Path,
    settings: TrainSettings,
    images: ImageData,
    backbone: bytes,
    home: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "_extracted", None)
    times = {path: path.stat().st_mtime_ns for path in (home / "features").rglob("*")}
    other_seed = changed(settings, seed=1)
    again = prepare(other_seed, images, backbone, own_folder=home / "own", num_cpus=2)
    assert again == folder
    assert capfd.readouterr().out == f"features: found in {folder}\n"
    assert {path: path.stat().st_mtime_ns for path in (home / "features").rglob("*")} == times


def test_are_the_same_of_images_that_are_too_many_to_keep(
    folder: Path,
    settings: TrainSettings,
    images: ImageData,
    backbone: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset, "KEPT_SHARE_OF_OBJECT_STORE", 0)
    streamed = data.load(settings, SIZE)
    assert images.kept and not streamed.kept
    own = prepare(
        changed(settings, feature_cache=False),
        streamed,
        backbone,
        own_folder=tmp_path / "own",
        num_cpus=2,
    )
    assert own == tmp_path / "own"
    for split in ("train", "val"):
        np.testing.assert_array_equal(sorted_rows(own, split), sorted_rows(folder, split))


def sorted_rows(folder: Path, split: str) -> np.ndarray:
    """Features and label of each image. Files that are read again come in another order."""
    features = np.load(folder / f"{split}_features.npy")
    labels = np.load(folder / f"{split}_labels.npy")
    rows = np.column_stack([labels, features.reshape(len(features), -1)])
    return rows[np.lexsort(rows.T)]


def test_are_computed_where_the_last_batch_is_of_the_test_split_alone(
    settings: TrainSettings, images: ImageData, backbone: bytes, tmp_path: Path
) -> None:
    rows = [row for split in ("val", "train") for row in rows_of(images, split)][:32]
    rows.append(rows_of(images, "test")[0])
    dataset = ray.data.from_items(rows, override_num_blocks=1)
    counts = {split: Counter(a=0) for split in data.SPLITS}
    for row in rows:
        counts[row["split"]][images.class_names[row["label"]]] += 1
    summary = data.Summary(counts, "", {})
    few = ImageData(lambda splits: dataset, images.class_names, summary, kept=True)
    own = prepare(
        changed(settings, feature_cache=False),
        few,
        backbone,
        own_folder=tmp_path / "own",
        num_cpus=1,
    )
    for split in ("train", "val"):
        num_rows = summary.counts[split].total()
        assert len(np.load(own / f"{split}_features.npy")) == num_rows > 0
