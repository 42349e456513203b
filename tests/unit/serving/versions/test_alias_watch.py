"""Which versions are served as aliases move. No Ray, registry or model files here."""

from typing import Any

import pytest

from mask_ray.config import MaskRayError
from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.alias_watch import AliasWatch, Wanted, alias_of
from mask_ray.serving.versions.events import Refusal
from mask_ray.serving.versions.kept_refusals import KeptRefusals


class Registry:
    """Aliases, versions that are no good, and the time; all by hand."""

    def __init__(self, **aliases: str) -> None:
        self.aliases = aliases
        self.bad: dict[str, Exception] = {}
        self.vetted: list[str] = []
        self.num_read = 0
        self.down = False
        self.now_s = 0.0

    def read(self) -> dict[str, str]:
        self.num_read += 1
        if self.down:
            raise MaskRayError("the store is gone")
        return dict(self.aliases)

    def vet(self, version: str) -> None:
        self.vetted.append(version)
        if version in self.bad:
            raise self.bad[version]

    def watch(self, has_challenger: bool = False) -> AliasWatch:
        return AliasWatch(
            "champion",
            has_challenger=has_challenger,
            fallback="1",
            read_aliases=self.read,
            vet=self.vet,
            kept=KeptRefusals({}.get, {}.__setitem__),
            max_age_s=5,
            clock=lambda: self.now_s,
        )

    def later(self, watch: AliasWatch, serving: str | None = None) -> Wanted:
        self.now_s += 5
        return watch.wanted(serving)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/mask-detector@champion", ("mask-detector", "champion")),
        ("models:/a@b", ("a", "b")),
        ("models:/mask-detector/3", None),
        ("models:/mask-detector/latest", None),
        ("runs:/abc/model@x", None),
        ("/srv/models@home/tiny.onnx", None),
    ],
)
def test_only_an_alias_moves(uri: str, expected: Any) -> None:
    assert alias_of(uri) == expected


def test_a_version_is_vetted_once_and_then_wanted() -> None:
    registry = Registry(champion="1")
    watch = registry.watch()

    assert watch.wanted(None) == Wanted("1")
    registry.aliases["champion"] = "2"
    assert [registry.later(watch) for _ in range(3)] == [Wanted("2")] * 3
    assert registry.vetted == ["2"]


def test_aliases_are_read_once_for_all_that_ask_within_their_age() -> None:
    registry = Registry(champion="1")
    watch = registry.watch()

    for _ in range(10):
        watch.wanted("1")
    assert registry.num_read == 1
    registry.later(watch)
    assert registry.num_read == 2


def test_a_refused_version_is_tried_once_until_the_alias_has_moved() -> None:
    registry = Registry(champion="2")
    registry.bad["2"] = ModelRefusedError("it is broken")
    watch = registry.watch()

    refused = Wanted("1", refusals=(Refusal("champion", "2", "it is broken"),))
    assert [registry.later(watch) for _ in range(3)] == [refused] * 3
    assert registry.vetted == ["2"]

    registry.aliases["champion"] = "1"
    assert registry.later(watch) == Wanted("1")
    registry.aliases["champion"] = "2"
    assert registry.later(watch) == refused
    assert registry.vetted == ["2", "2"]


def test_what_cannot_be_fetched_is_tried_again_ever_more_seldom() -> None:
    registry = Registry(champion="2")
    registry.bad["2"] = MaskRayError("no disk space")
    watch = registry.watch()

    tried_at = []
    for _ in range(30):
        num_tried = len(registry.vetted)
        assert registry.later(watch) == Wanted("1")
        if len(registry.vetted) > num_tried:
            tried_at.append(registry.now_s)
    assert tried_at == [5, 15, 35, 75]
    del registry.bad["2"]
    registry.now_s = 1000
    assert watch.wanted("1") == Wanted("2")


def test_a_registry_that_does_not_answer_changes_nothing() -> None:
    registry = Registry(champion="2")
    watch = registry.watch()
    assert registry.later(watch) == Wanted("2")

    registry.down = True
    assert registry.later(watch) == Wanted("2")
    registry.down, registry.aliases = False, {"champion": "3"}
    assert registry.later(watch) == Wanted("3")


def test_an_alias_that_is_gone_leaves_the_champion_and_ends_the_challenger() -> None:
    registry = Registry(champion="2", challenger="3")
    watch = registry.watch(has_challenger=True)
    assert registry.later(watch) == Wanted("2", "3")

    registry.aliases = {}
    assert registry.later(watch) == Wanted("2", None)


def test_a_challenger_is_not_looked_at_unless_asked_for() -> None:
    registry = Registry(champion="1", challenger="3")

    assert registry.watch().wanted(None) == Wanted("1")
    assert registry.vetted == []


def test_a_new_watch_goes_on_from_what_replicas_have() -> None:
    registry = Registry(champion="9")
    registry.bad["9"] = ModelRefusedError("it is broken")

    assert registry.watch().wanted("5").champion == "5"
