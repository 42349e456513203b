"""A replica that follows the versions it is to serve. No Ray, registry or model files here."""

from collections.abc import Callable

import pytest

from mask_ray.config import CHALLENGER, MaskRayError
from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.alias_watch import Wanted
from mask_ray.serving.versions.events import Refusal
from mask_ray.serving.versions.follower import LoadedModel, VersionFollower
from tests.support.event_counts import ModelEventCounts


class Asked:
    """A follower whose watch and loader are by hand."""

    def __init__(self, champion: str = "1") -> None:
        self.wanted = Wanted(champion)
        self.bad: dict[str, Exception] = {}
        self.loaded: list[str] = []
        self.events = ModelEventCounts()

    def ask(self, serving: str | None) -> Wanted:
        return self.wanted

    def load(self, version: str) -> LoadedModel:
        self.loaded.append(version)
        if version in self.bad:
            raise self.bad[version]
        return LoadedModel("faces", version, predictor=None)

    def follower(self, ask: Callable[[str | None], Wanted] | None = None) -> VersionFollower:
        return VersionFollower(
            "champion", fallback="1", ask=ask or self.ask, load=self.load, events=self.events
        )


def test_a_replica_starts_with_what_the_others_have() -> None:
    assert Asked("7").follower().serving.champion.version == "7"


@pytest.mark.parametrize("error", [MaskRayError("gone"), RuntimeError("worse")])
def test_a_replica_starts_with_the_fallback_when_nobody_answers(error: Exception) -> None:
    def fail(_: str | None) -> Wanted:
        raise error

    assert Asked("7").follower(fail).serving.champion.version == "1"


def test_a_replica_starts_with_the_fallback_when_the_wanted_one_fails() -> None:
    asked = Asked("7")
    asked.bad["7"] = MaskRayError("no disk space")

    follower = asked.follower()
    assert follower.serving.champion.version == "1"
    del asked.bad["7"]
    follower.follow()
    assert follower.serving.champion.version == "7"


def test_both_models_are_loaded_once_and_switched_as_a_whole() -> None:
    asked = Asked()
    follower = asked.follower()
    before = follower.serving
    asked.wanted = Wanted("2", "3")

    follower.follow()
    after = follower.serving
    follower.follow()

    assert (before.champion.version, before.challenger) == ("1", None)
    assert after.challenger is not None
    assert (after.champion.version, after.challenger.version) == ("2", "3")
    assert follower.serving == after
    assert asked.loaded == ["1", "2", "3"]
    assert asked.events.counts() == {"switched": 2}


def test_a_version_that_is_refused_here_is_told_and_tried_once() -> None:
    asked = Asked()
    follower = asked.follower()
    asked.wanted = Wanted("2")
    asked.bad["2"] = ModelRefusedError("it is broken")

    for _ in range(3):
        follower.follow()

    assert follower.serving.champion.version == "1"
    assert follower.serving.refusals == (Refusal("champion", "2", "it is broken"),)
    assert asked.loaded == ["1", "2"]
    assert asked.events.counts() == {"refused": 1}
    asked.wanted = Wanted("1")
    follower.follow()
    assert follower.serving.refusals == ()


def test_a_replica_knows_from_its_start_what_is_refused() -> None:
    asked = Asked()
    asked.wanted = Wanted("1", refusals=(Refusal("champion", "2", "it is slow"),))
    follower = asked.follower()
    assert follower.serving.refusals == asked.wanted.refusals
    follower.follow()
    assert asked.events.counts() == {"refused": 1}


def test_a_version_that_was_refused_elsewhere_is_told_once() -> None:
    asked = Asked()
    follower = asked.follower()
    refusal = Refusal(CHALLENGER, "4", "it is broken")
    asked.wanted = Wanted("1", refusals=(refusal,))

    for _ in range(3):
        follower.follow()

    assert follower.serving.refusals == (refusal,)
    assert asked.loaded == ["1"]
    assert asked.events.counts() == {"refused": 1}


def test_a_challenger_that_is_no_longer_wanted_goes() -> None:
    asked = Asked()
    asked.wanted = Wanted("1", "3")
    follower = asked.follower()
    follower.follow()
    asked.wanted = Wanted("1")

    follower.follow()

    assert follower.serving.challenger is None


class Times:
    """An event that is set after so many waits."""

    def __init__(self, num: int) -> None:
        self.num = num

    def wait(self, timeout: float) -> bool:
        self.num -= 1
        return self.num < 0


def test_following_goes_on_after_any_error() -> None:
    asked = Asked()
    wanted = iter([RuntimeError("the actor died"), Wanted("2")])
    follower = asked.follower()

    def ask(_: str | None) -> Wanted:
        outcome = next(wanted)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, Wanted)
        return outcome

    follower._ask = ask
    follower.follow_every(0.1, Times(2))

    assert follower.serving.champion.version == "2"
