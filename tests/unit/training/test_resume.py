"""A resumed run keeps the settings that decide what it makes."""

from typing import Any

import pytest

from mask_ray import ray_internals, tracking
from mask_ray.config import TrainSettings, changeable_fields
from mask_ray.stalls import StalledError
from mask_ray.training.resume import ResumeError, check_resumable, saying_how

RUN_ID = "0" * 32
STORED = TrainSettings(data="photos", learning_rate=0.01).model_dump(mode="json")


class StoredRun:
    """Stands in for an MLflow run that was interrupted."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def status(self) -> str:
        return "KILLED"

    def has_file(self, name: str) -> bool:
        return name == "settings.json"

    def load_json(self, name: str) -> dict[str, Any]:
        return STORED


@pytest.fixture(autouse=True)
def _stored_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "Run", StoredRun)


def resumed(**changes: Any) -> TrainSettings:
    return TrainSettings(**STORED | {"resume": RUN_ID} | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_workers": 2}, {"checkpoint_every_s": 60}, {"min_recall": 0.9}, {"quantize": False}],
    ids=str,
)
def test_how_a_run_goes_on_may_change(changes: dict[str, Any]) -> None:
    check_resumable(resumed(**changes))


def test_a_setting_that_is_newer_than_the_run_had_the_effect_of_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = {name: value for name, value in STORED.items() if name != "class_weights"}
    monkeypatch.setattr(StoredRun, "load_json", lambda self, name: older)

    check_resumable(resumed())
    with pytest.raises(ResumeError, match=r"class_weights must stay as .*, none; got balanced"):
        check_resumable(resumed(class_weights="balanced"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, "learning_rate must stay as in the resumed run, 0.01; got 0.02"),
        ({"data": "others"}, "data must stay as in the resumed run, photos; got others"),
        ({"seed": 1}, "seed must stay as in the resumed run, 0; got 1"),
    ],
    ids=["learning rate", "data", "seed"],
)
def test_what_a_run_makes_may_not(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResumeError) as caught:
        check_resumable(resumed(**changes))
    assert str(caught.value) == message


def test_settings_of_the_data_and_the_model_are_not_marked() -> None:
    decide = {"data", "test_data", "val_fraction", "seed", "image_size", "alpha", "batch_size"}
    assert decide <= TrainSettings.model_fields.keys() - changeable_fields(TrainSettings)


SECRET_URI = "s3://key:s3cret@bucket/photos"


@pytest.mark.parametrize("stored", [SECRET_URI, "s3://***@bucket/photos"])
def test_a_run_resumes_with_its_source_given_again(
    stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredRun, "load_json", lambda self, name: STORED | {"data": stored})

    check_resumable(resumed(data=SECRET_URI))
    with pytest.raises(ResumeError, match=r"data must stay as .*, s3://\*\*\*@bucket/photos; got"):
        check_resumable(resumed(data="s3://key:s3cret@bucket/others"))


def test_what_is_stored_of_a_run_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredRun, "load_json", lambda self, name: STORED | {"data": SECRET_URI})

    with pytest.raises(ResumeError) as caught:
        check_resumable(resumed(data="others"))
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(resumed(data=SECRET_URI).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("submission", "command"),
    [
        (None, f"python -m jobs.train --resume {RUN_ID}"),
        (
            "raysubmit_1",
            f"ray job submit --working-dir . -- python -m jobs.train --resume {RUN_ID}",
        ),
    ],
)
def test_ctrl_c_and_a_standstill_name_the_command_that_resumes(
    submission: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "submission_id", lambda: submission)
    run = tracking.Run(RUN_ID)
    with pytest.raises(KeyboardInterrupt) as stopped, saying_how("jobs.train", run):
        raise KeyboardInterrupt
    assert str(stopped.value) == f"run {RUN_ID} is KILLED; resume with {command}"
    with pytest.raises(StalledError) as ended, saying_how("jobs.train", run):
        raise StalledError("reading made no progress")
    assert str(ended.value) == f"reading made no progress. To go on, resume with {command}"
