"""Which sources of images settings take."""

import pytest

from mask_ray.config import DataSettings, DemoSettings, EvaluateSettings, Settings, TrainSettings
from tests.support.settings_classes import mistake


@pytest.mark.parametrize("settings_class", [DataSettings, TrainSettings, EvaluateSettings])
def test_data_is_required(settings_class: type[Settings]) -> None:
    assert mistake(settings_class, {}) == "data is required"


@pytest.mark.parametrize(
    "data", ["photos", "/a b/ü", "synthetic", "synthetic:1", "synthetic_faces"]
)
def test_data_may_be_a_folder_or_drawn(data: str) -> None:
    assert DataSettings(data=data).data == data


@pytest.mark.parametrize("data", ["synthetic:0", "synthetic:", "synthetic:many", "synthetic:-5"])
def test_a_wrong_number_of_drawn_images_is_told_the_form(data: str) -> None:
    assert mistake(DataSettings, {"data": data}) == (
        f"data must be a source of images, synthetic or synthetic:N with N >= 1; got {data}"
    )


def test_empty_data_is_told_the_form() -> None:
    assert mistake(DataSettings, {"data": " "}) == (
        "data must be a source of images or synthetic[:N]; got an empty string"
    )


@pytest.mark.parametrize("source", ["", "synthetic:", "synthetic:0", "synthetic:abc"])
def test_the_demo_takes_the_sources_that_training_takes(source: str) -> None:
    assert mistake(DemoSettings, {"data": source}) == mistake(TrainSettings, {"data": source})


def test_several_sources_are_one_a_line() -> None:
    assert DataSettings(data=["a,b", "s3://c"]).data == "a,b\ns3://c"
    assert DataSettings(data="x", test_data=["y"]).test_data == "y"


def test_drawn_faces_are_a_source_alone() -> None:
    assert mistake(DataSettings, {"data": ["photos", "synthetic:9"]}) == (
        "data must be synthetic:9 alone, or sources of files; got both"
    )
