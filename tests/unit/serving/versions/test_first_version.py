"""Which version an application starts with. No registry and no model files here."""

from pathlib import Path

import pytest

from mask_ray.config import MaskRayError
from mask_ray.models.smoke_test import ModelLimits, ModelRefusedError
from mask_ray.serving.versions.first_version import FirstModel, choose_first, find_first
from tests.support.onnx_files import write_classifier

SLOW = ModelRefusedError("8 images took 6 s")


class Versions:
    def __init__(self, *champions: str, **bad: MaskRayError) -> None:
        self.champions = champions
        self.bad = {name.removeprefix("v"): error for name, error in bad.items()}
        self.loaded: list[str] = []

    def choose(self, version: str) -> str | None:
        return choose_first(version, lambda: self.champions, self.load).version

    def load(self, version: str) -> FirstModel:
        self.loaded.append(version)
        if version in self.bad:
            raise self.bad[version]
        return FirstModel(Path(f"{version}.onnx"), "masks", version, ("with", "without"))


def test_a_version_that_holds_is_started_with_and_no_other_is_tried() -> None:
    versions = Versions("1", "2", "3")
    assert versions.choose("3") == "3"
    assert versions.loaded == ["3"]


def test_the_champion_before_a_refused_one_takes_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    versions = Versions("1", "3", "2", "3", v3=SLOW, v2=MaskRayError("its file is gone"))
    assert versions.choose("3") == "1"
    assert versions.loaded == ["3", "2", "1"]
    assert [record.message for record in caplog.records] == [
        "version 3 is rejected: 8 images took 6 s",
        "version 2, a champion before it, is rejected: its file is gone",
        "starting with version 1, a champion before it",
    ]


@pytest.mark.parametrize(
    ("champions", "expected"),
    [
        (("3",), "No champion before it can take its place: there is none"),
        (("1", "2", "3"), "No champion before it can take its place; neither can 2, 1"),
    ],
)
def test_the_error_says_that_none_holds(champions: tuple[str, ...], expected: str) -> None:
    versions = Versions(*champions, v1=SLOW, v2=SLOW, v3=SLOW)
    with pytest.raises(ModelRefusedError) as error:
        versions.choose("3")
    assert str(error.value) == f"version 3 cannot be served: 8 images took 6 s. {expected}"


def test_a_registry_that_does_not_answer_refuses_no_version() -> None:
    versions = Versions("1", "2", v2=MaskRayError("the store does not answer"))
    with pytest.raises(MaskRayError, match="does not answer"):
        versions.choose("2")
    assert versions.loaded == ["2"]


def test_a_file_over_the_limits_is_refused(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx")
    assert find_first(str(path), ModelLimits(8, 60, 4_096)).path == path
    with pytest.raises(ModelRefusedError, match="a batch of 8 images may take 0 s"):
        find_first(str(path), ModelLimits(8, 0, 4_096))
