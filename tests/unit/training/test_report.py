"""What a run says of the model that it reports on; a report that fails loses no model."""

import errno
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mask_ray import evaluation
from mask_ray.config import MaskRayError, TrainSettings
from mask_ray.evaluation import Predictions
from mask_ray.training import run

SETTINGS = TrainSettings.model_validate({"data": "synthetic:20"})
PREDICTIONS = Predictions(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), ["a", "b"])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(run, "say", lines.append)
    return lines


def report(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict[str, Any]:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(evaluation, "make_report", fail)
    job: Any = SimpleNamespace(tracked=SimpleNamespace(run_id="run"))
    exported: Any = SimpleNamespace(
        examination=SimpleNamespace(predictions=PREDICTIONS), onnx=None, predictor=lambda: None
    )
    return run._report(SETTINGS, job, exported)


def test_training_goes_on_with_the_metrics(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    found = report(monkeypatch, ValueError("no such glyph"))
    assert found["accuracy"] == 1
    assert said == [
        "the run has no complete report, since making it failed: ValueError: no such glyph"
    ]


@pytest.mark.parametrize("error", [MaskRayError("the store"), OSError(errno.ENOSPC, "full")])
def test_a_store_that_fails_is_an_error(
    monkeypatch: pytest.MonkeyPatch, said: list[str], error: Exception
) -> None:
    with pytest.raises(type(error)):
        report(monkeypatch, error)
    assert said == []


@pytest.mark.parametrize(
    ("weights", "advice"), [("none", ", or try --class-weights balanced"), ("balanced", "")]
)
def test_a_class_without_recall_is_said_with_what_helps(
    said: list[str], weights: str, advice: str
) -> None:
    missed = Predictions(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    settings = TrainSettings.model_validate({"data": "synthetic:20", "class_weights": weights})
    for predictions in (missed, PREDICTIONS):
        exported: Any = SimpleNamespace(examination=SimpleNamespace(predictions=predictions))
        run._say_what_is_missed(settings, exported)
    assert said == [
        f"no image is recognised of b (0 of 1): add images of such classes, train longer{advice}"
    ]
