"""A new champion reaches one replica first, and is taken back when health checks fail."""

from dataclasses import dataclass, field

import pytest

from mask_ray.models.smoke_test import ModelRefusedError
from mask_ray.serving.versions.alias_watch import AliasWatch
from mask_ray.serving.versions.events import Refusal

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
        self.watch = AliasWatch(
            "champion",
            has_challenger=False,
            fallback="1",
            read_aliases=lambda: {"champion": self.champion},
            vet=self.vetted.append,
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
    assert service.all_ask(after_s=3 * TRIAL_S) == {"b": "1", "c": "2"}
    for _ in range(2):
        service.all_ask(after_s=TRIAL_S)
    assert service.all_ask(after_s=1) == {"b": "2", "c": "2"}


def test_a_version_that_two_replicas_end_with_reaches_no_other(service: Service) -> None:
    service.all_ask(after_s=1)
    del service.serving["a"]
    service.all_ask(after_s=4 * TRIAL_S)
    del service.serving["c"]
    assert service.all_ask(after_s=4 * TRIAL_S) == {"b": "1"}
    assert service.ask("b")[0].reason == (
        "2 replicas were lost or did not load it before others had it"
    )


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
