import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from mask_ray.models.predictor import ModelFileError, Predictor, predict_together
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "model.onnx")


def random_images(count: int) -> np.ndarray:
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_reads_classes_and_size_from_the_file(model_path: Path) -> None:
    predictor = Predictor(model_path)

    assert predictor.class_names == CLASS_NAMES
    assert predictor.image_size == IMAGE_SIZE


def test_each_row_is_a_distribution_over_the_classes(model_path: Path) -> None:
    probabilities = Predictor(model_path).predict(random_images(5))

    assert probabilities.shape == (5, 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_an_image_gets_the_same_answer_alone_and_in_a_batch(model_path: Path) -> None:
    predictor = Predictor(model_path)
    images = random_images(9)

    alone = np.concatenate([predictor.predict(image[None]) for image in images])

    np.testing.assert_allclose(predictor.predict(images), alone, atol=1e-6)
    assert len({round(float(p), 4) for p in alone[:, 0]}) == 9


def test_threads_do_not_disturb_each_other(model_path: Path) -> None:
    predictor = Predictor(model_path, num_threads=2)
    images = random_images(40)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: predictor.predict(image[None])[0], images))

    np.testing.assert_allclose(answers, predictor.predict(images), atol=1e-6)


def test_no_images_give_no_rows(model_path: Path) -> None:
    assert Predictor(model_path).predict(random_images(0)).shape == (0, 2)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32),
        np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        np.zeros((1, IMAGE_SIZE, IMAGE_SIZE + 1, 3), np.uint8),
        np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 4), np.uint8),
    ],
    ids=["float", "one image", "another size", "alpha"],
)
def test_refuses_other_arrays(model_path: Path, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, 32, 32, 3\); got"):
        Predictor(model_path).predict(images)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"image_size": "32"}, "its metadata lacks class_names"),
        ({"class_names": '["a", "b"]'}, "its metadata lacks image_size"),
        ({"class_names": "a, b", "image_size": "32"}, "class_names must be a JSON list of strings"),
        ({"class_names": "[]", "image_size": "32"}, "class_names must be a JSON list of strings"),
        ({"class_names": '["a", "b"]', "image_size": "32px"}, "image_size must be a positive int"),
        ({"class_names": '["a", "b"]', "image_size": "64"}, "its input must be image: tensor"),
        ({"class_names": '["a"]', "image_size": "32"}, "its output must be probabilities"),
    ],
)
def test_refuses_a_model_that_does_not_describe_itself(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = write_classifier(tmp_path / "model.onnx", metadata=metadata)

    with pytest.raises(ModelFileError, match=message) as caught:
        Predictor(path)

    assert str(path) in str(caught.value)


def test_refuses_a_model_that_takes_floats(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx", input_type=TensorProto.FLOAT)

    with pytest.raises(ModelFileError, match=r"its input must be .*uint8.*; got .*float"):
        Predictor(path)


def test_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")

    with pytest.raises(ModelFileError, match="cannot be loaded"):
        Predictor(path)


def test_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.onnx is not a file"):
        Predictor(tmp_path / "missing.onnx")


def test_loads_neither_ray_nor_training_code() -> None:
    code = (
        "import json, sys, mask_ray.models.predictor; "
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert not {"ray", "mlflow", "tensorflow", "keras", "horovod"} & set(json.loads(printed))


def test_a_mixed_batch_is_answered_by_the_model_of_each_image(tmp_path: Path) -> None:
    small = Predictor(write_classifier(tmp_path / "small.onnx", seed=1))
    large = Predictor(write_classifier(tmp_path / "large.onnx", image_size=48, seed=2))
    of_small = random_images(3)
    of_large = np.random.default_rng(2).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    order = [(small, 0), (large, 0), (large, 1), (small, 1), (small, 2)]
    images = {small: of_small, large: of_large}

    answers = predict_together([(model, images[model][index]) for model, index in order])

    for (model, index), answer in zip(order, answers, strict=True):
        np.testing.assert_allclose(answer, model.predict(images[model])[index], atol=1e-6)


def test_a_model_that_fails_harms_no_other_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: np.ndarray, **options: bool) -> np.ndarray:
        raise RuntimeError("no inference")

    sound = Predictor(write_classifier(tmp_path / "sound.onnx"))
    failing = Predictor(write_classifier(tmp_path / "failing.onnx"))
    monkeypatch.setattr(failing, "predict", fail)
    images = random_images(3)

    first, second, third = predict_together(
        [(sound, images[0]), (failing, images[1]), (sound, images[2])]
    )

    assert isinstance(second, RuntimeError)
    np.testing.assert_allclose([first, third], sound.predict(images[[0, 2]]), atol=1e-6)


def test_no_requests_have_no_answers() -> None:
    assert predict_together([]) == []
