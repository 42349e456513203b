"""What holds for all settings, and where state lives."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mask_ray.config import ServeSettings, Settings, TrainSettings, home
from tests.support.project import ROOT
from tests.support.settings_classes import DATA_OF, mistake


@pytest.mark.parametrize("settings_class", DATA_OF)
def test_defaults_are_valid_and_cannot_be_changed(settings_class: type[Settings]) -> None:
    settings = settings_class(**DATA_OF[settings_class])

    for name, value in settings.model_dump().items():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, value)


@pytest.mark.parametrize("settings_class", DATA_OF)
def test_unknown_keys_are_refused_by_name(settings_class: type[Settings]) -> None:
    given = {**DATA_OF[settings_class], "num_wokers": 2}
    assert mistake(settings_class, given) == "num_wokers is not a setting"


def test_all_mistakes_are_told_at_once() -> None:
    message = mistake(TrainSettings, {"num_workers": 0, "nope": 1})
    assert message.split("; ") == [
        "data is required",
        "num_workers must be greater than or equal to 1",
        "got 0",
        "nope is not a setting",
    ]


def test_settings_come_back_from_json_as_they_were() -> None:
    """A resumed run reads those it began with."""
    settings = TrainSettings(
        data="photos", backbone_weights="none", num_workers=2, min_workers=1, alpha=0.35
    )
    assert TrainSettings(**json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_home_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "state"))
    assert home() == tmp_path / "state"
    assert not home().exists()


def test_home_is_absolute_and_may_start_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASK_RAY_HOME", "~/state")
    assert home() == tmp_path / "state"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASK_RAY_HOME", "here")
    assert home() == tmp_path / "here"


def test_home_is_in_the_users_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MASK_RAY_HOME")
    assert home() == tmp_path / ".mask_ray"

    monkeypatch.setenv("MASK_RAY_HOME", "")
    assert home() == tmp_path / ".mask_ray"


def test_serve_config_explains_every_setting_and_has_the_defaults() -> None:
    text = (ROOT / "serve_config.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    lines = text.split("    args:\n", 1)[1].splitlines()

    given = ServeSettings.model_validate(application["args"])

    assert given == ServeSettings.model_validate({})
    assert application["args"].keys() == ServeSettings.model_fields.keys()
    assert [line for line in lines if " # " not in line] == []
