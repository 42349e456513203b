"""Models that must not be served, and what is said of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask_ray.models.predictor import Predictor
from mask_ray.models.smoke_test import (
    ModelLimits,
    ModelRefusedError,
    check_answers,
    check_memory,
    check_seconds,
    load_checked,
    smoke_images,
)
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier


def test_a_good_model_is_admitted(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "tiny.onnx")

    assert load_checked(path, class_names=CLASS_NAMES).class_names == CLASS_NAMES


def test_a_file_that_is_no_model_is_refused_without_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")

    with pytest.raises(ModelRefusedError) as refused:
        load_checked(path)
    assert str(refused.value).startswith("model.onnx cannot be loaded by ONNX Runtime")
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("names", [("cat", "dog"), CLASS_NAMES[::-1], (*CLASS_NAMES, "beard")])
def test_other_classes_are_refused_unless_allowed(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = write_classifier(tmp_path / "other.onnx", class_names=names)

    with pytest.raises(
        ModelRefusedError, match=f"must be {', '.join(CLASS_NAMES)},.*got {names[0]}"
    ):
        load_checked(path, class_names=CLASS_NAMES)
    assert load_checked(path).class_names == names


def test_answers_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="must be finite"):
        load_checked(write_classifier(tmp_path / "nan.onnx", scale=float("nan")))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (np.full((4, 2), 0.6), r"must sum to 1; got sums of 1\.2"),
        (np.array([[1.5, -0.5]] * 4), r"must be in 0\.\.1; got -0\.5 to 1\.5"),
        (np.full((4, 3), 1 / 3), r"must have the shape \(4, 2\); got \(4, 3\)"),
        (np.array([[np.inf, 0.0]] * 4), "must be finite"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: np.ndarray, reason: str
) -> None:
    predictor = Predictor(write_classifier(tmp_path / "tiny.onnx"))
    monkeypatch.setattr(predictor, "predict", lambda images: answers)

    with pytest.raises(ModelRefusedError, match=reason):
        check_answers(predictor)


def test_a_model_that_raises_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("bad node")

    predictor = Predictor(write_classifier(tmp_path / "tiny.onnx"))
    monkeypatch.setattr(predictor, "predict", fail)

    with pytest.raises(ModelRefusedError, match="fails on a smoke prediction: bad node"):
        check_answers(predictor)


def test_smoke_images_are_the_same_every_time_and_differ_from_each_other() -> None:
    images = smoke_images(IMAGE_SIZE)

    assert images.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.array_equal(images, smoke_images(IMAGE_SIZE))
    assert len({image.tobytes() for image in images}) == 4


def clock_of(*seconds: float) -> Callable[[], float]:
    """A clock by which the tries take these times, one after the other."""
    times = iter([time for taken in seconds for time in (0.0, taken)])
    return lambda: next(times)


@pytest.mark.parametrize(
    "seconds",
    [(0.1, 1.9), (9.0, 0.1, 1.9), (0.1, 9.0, 9.0, 2.0)],
    ids=["fast", "one image delayed", "the batch delayed twice"],
)
def test_a_model_in_time_is_admitted(tmp_path: Path, seconds: tuple[float, ...]) -> None:
    predictor = Predictor(write_classifier(tmp_path / "tiny.onnx"))
    check_seconds(predictor, ModelLimits(8, 2, 100), clock_of(*seconds))


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [((6.0, 6.1, 6.2), "1 took 6 s"), ((0.5, 4.1, 4.0, 4.2), "8 took 4 s")],
)
def test_a_slow_model_is_refused(tmp_path: Path, seconds: tuple[float, ...], reason: str) -> None:
    predictor = Predictor(write_classifier(tmp_path / "tiny.onnx"))
    with pytest.raises(ModelRefusedError, match=f"batch of 8 images may take 2 s.*; {reason}"):
        check_seconds(predictor, ModelLimits(8, 2, 100), clock_of(*seconds))


def test_a_large_model_is_refused() -> None:
    check_memory(100, ModelLimits(8, 2, 100))
    with pytest.raises(ModelRefusedError, match=r"max_model_mb \(100\) MiB of memory; got 101"):
        check_memory(101, ModelLimits(8, 2, 100))


def test_limits_are_checked_when_a_model_is_loaded(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "tiny.onnx")
    load_checked(path, limits=ModelLimits(2, 3600, 10**6))
    with pytest.raises(ModelRefusedError, match="may take 0 s"):
        load_checked(path, limits=ModelLimits(2, 0, 10**6))
