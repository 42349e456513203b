"""A new champion reaches one replica first, and is taken back when health checks fail."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.alias_watch import AliasWatch
from mask_ray.serving.versions.events import Refusal
from mask_ray.serving.versions.kept_refusals import KeptRefusals
from mask_ray.serving.versions.rollout import RESOLVE_TIMEOUT_S, FailedChecks

TRIAL_S = 10


@dataclass
class Service:
    """Replicas by name, the versions that they serve, and the time; all by hand."""

    serving: dict[str, str] = field(default_factory=lambda: dict.fromkeys("abc", "1"))
    champion: str = "1"
    sick: set[str] = field(default_factory=set)
    vetted: list[str] = field(default_factory=list)
    now_s: float = 0

    def __post_init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.watch = AliasWatch(
            "champion",
            has_challenger=False,
            fallback="1",
            read_aliases=lambda: {"champion": self.champion},
            vet=self.vetted.append,
            kept=KeptRefusals(self.kept.get, self.kept.__setitem__),
            max_age_s=1,
            trial_s=TRIAL_S,
            clock=lambda: self.now_s,
        )

    def ask(self, replica: str) -> tuple[Refusal, ...]:
        """One replica reports, and switches to what it is told."""
        wanted = self.watch.wanted(self.serving[replica], replica, replica not in self.sick)
        self.serving[replica] = wanted.champion
        return wanted.refusals

    def all_ask(self, after_s: float) -> dict[str, str]:
        self.now_s += after_s
        for replica in self.serving:
            self.ask(replica)
        return self.serving


@pytest.fixture
def service() -> Service:
    service = Service()
    service.all_ask(after_s=1)
    service.champion = "2"
    return service


def test_one_replica_serves_a_new_version_before_the_others(service: Service) -> None:
    assert service.all_ask(after_s=1) == {"a": "2", "b": "1", "c": "1"}
    assert service.all_ask(after_s=TRIAL_S - 1) == {"a": "2", "b": "1", "c": "1"}
    assert service.all_ask(after_s=1) == {"a": "2", "b": "1", "c": "1"}
    assert service.all_ask(after_s=TRIAL_S) == {"a": "2", "b": "2", "c": "2"}
    assert service.vetted == ["2"]


def test_a_version_that_fails_in_the_first_replica_reaches_no_other(service: Service) -> None:
    service.all_ask(after_s=1)
    service.sick.add("a")
    assert service.all_ask(after_s=5) == {"a": "1", "b": "1", "c": "1"}
    (refusal,) = service.ask("b")
    assert refusal == Refusal("champion", "2", "the first replica with it failed its health check")


def test_another_replica_tries_if_the_first_one_ends(service: Service) -> None:
    service.all_ask(after_s=1)
    del service.serving["a"]
    assert service.all_ask(after_s=TRIAL_S) == {"b": "1", "c": "1"}
    # As long as it takes to find a version, and a trial; then two trials more.
    assert service.all_ask(after_s=RESOLVE_TIMEOUT_S + 1) == {"b": "1", "c": "1"}
    assert service.all_ask(after_s=2 * TRIAL_S) == {"b": "2", "c": "1"}
    for _ in range(2):
        service.all_ask(after_s=TRIAL_S)
    assert service.all_ask(after_s=1) == {"b": "2", "c": "2"}


def test_a_version_that_replicas_end_with_reaches_one_at_a_time_ever_later(
    service: Service,
) -> None:
    began_s: list[float] = []
    for name in "abcdef":
        service.serving.setdefault(name, "1")
    for _ in range(5):
        while "2" not in service.all_ask(after_s=1).values():
            pass
        (first,) = (name for name, version in service.serving.items() if version == "2")
        began_s.append(service.now_s)
        del service.serving[first]
    waits_s = np.diff(began_s)
    assert (np.diff(waits_s) > TRIAL_S).all()
    assert waits_s[-1] > RESOLVE_TIMEOUT_S + 16 * TRIAL_S
    # It is not rejected for good.
    (last,) = service.serving
    assert service.ask(last) == ()


def test_a_replica_that_finds_a_version_slowly_serves_it(service: Service) -> None:
    service.all_ask(after_s=1)
    # It answers no sooner than the version is loaded; see `resolve_here`.
    service.serving["a"] = "1"
    for _ in range(int(RESOLVE_TIMEOUT_S) - 1):
        service.now_s += 1
        for replica in "bc":
            service.ask(replica)
    assert service.all_ask(after_s=0)["a"] == "2"
    service.all_ask(after_s=1)
    for _ in range(2):
        service.all_ask(after_s=TRIAL_S)
    assert set(service.serving.values()) == {"2"}


def test_only_failures_in_a_row_with_one_version_are_blamed_on_it() -> None:
    checks = FailedChecks()
    for version, has_failed in (("2", True), ("2", False), ("2", True), ("1", True)):
        checks.note(version, has_failed)
        assert not checks.blame("1") and not checks.blame("2")
    checks.note("1", True)
    assert checks.blame("1") and not checks.blame("2")


def test_the_last_good_version_comes_back_when_health_fails_after_a_switch(
    service: Service,
) -> None:
    for _ in range(4):
        service.all_ask(after_s=TRIAL_S)
    assert set(service.serving.values()) == {"2"}
    service.sick.add("c")
    service.all_ask(after_s=5)
    service.sick.clear()
    assert set(service.all_ask(after_s=1).values()) == {"1"}
    assert service.ask("a")[0].reason == "a replica with it failed its health check"


def test_a_version_that_failed_is_not_tried_again(service: Service) -> None:
    service.all_ask(after_s=1)
    service.sick.add("a")
    service.all_ask(after_s=5)
    service.sick.clear()
    service.champion = "1"
    service.all_ask(after_s=5)
    service.champion = "2"
    assert set(service.all_ask(after_s=5).values()) == {"1"}
    assert service.ask("a")[0].version == "2"
    assert service.vetted == ["2"]
    assert service.kept == {"2": "the first replica with it failed its health check"}


def test_a_new_watch_does_not_try_it_either_nor_take_it_from_a_replica() -> None:
    service = Service(champion="2")
    service.kept["2"] = "it was slow"
    service.serving["a"] = "2"
    assert service.ask("a") == (Refusal("champion", "2", "it was slow"),)
    assert set(service.all_ask(after_s=5).values()) == {"1"}
    assert service.vetted == []


def test_a_version_that_is_forgiven_is_tried_again_where_the_alias_is(service: Service) -> None:
    service.kept["2"] = "it was slow"
    assert set(service.all_ask(after_s=1).values()) == {"1"}
    del service.kept["2"]
    for _ in range(4):
        served = service.all_ask(after_s=TRIAL_S)
    assert set(served.values()) == {"2"}
    assert service.ask("a") == ()
    assert service.vetted == ["2"]


def test_long_after_a_switch_a_sick_replica_is_not_blamed_on_the_version(service: Service) -> None:
    for _ in range(4):
        service.all_ask(after_s=TRIAL_S)
    service.all_ask(after_s=10 * TRIAL_S)
    service.sick.add("c")
    assert set(service.all_ask(after_s=5).values()) == {"2"}


def test_an_alias_that_moves_back_ends_the_trial(service: Service) -> None:
    service.all_ask(after_s=1)
    service.champion = "1"
    assert set(service.all_ask(after_s=5).values()) == {"1"}
    assert service.ask("a") == ()


def test_a_sick_replica_is_not_the_first(service: Service) -> None:
    service.sick.add("a")
    assert service.all_ask(after_s=1) == {"a": "1", "b": "2", "c": "1"}


def test_a_replica_that_starts_meanwhile_serves_what_the_others_do(service: Service) -> None:
    service.all_ask(after_s=1)
    assert service.watch.wanted(None, "new", True).champion == "1"


def test_a_version_on_trial_stays_when_the_alias_moves_to_one_that_is_rejected(
    service: Service,
) -> None:
    service.all_ask(after_s=1)

    def reject(version: str) -> None:
        raise ModelRefusedError("no good")

    service.watch._vet = reject
    service.champion = "3"
    assert service.all_ask(after_s=1) == {"a": "2", "b": "1", "c": "1"}
    assert service.ask("b")[0].version == "3"
    for _ in range(2):
        service.all_ask(after_s=TRIAL_S)
    assert set(service.serving.values()) == {"2"}


def test_a_replica_that_is_alone_needs_no_trial() -> None:
    service = Service(serving={"a": "1"}, champion="2")
    for _ in range(3):
        service.all_ask(after_s=1)
    assert service.watch.wanted(None, "new", True).champion == "2"
    service.sick.add("a")
    assert service.all_ask(after_s=1) == {"a": "1"}
