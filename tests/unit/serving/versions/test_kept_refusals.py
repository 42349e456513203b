"""What failed health checks is remembered in a registry that is a dict here."""

from mask_ray.config import MaskRayError
from mask_ray.serving.versions.kept_refusals import KeptRefusals


class Registry:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.is_down = False

    def read(self, version: str) -> str | None:
        self._check()
        return self.kept.get(version)

    def write(self, version: str, reason: str) -> None:
        self._check()
        self.kept[version] = reason

    def refusals(self) -> KeptRefusals:
        return KeptRefusals(self.read, self.write)

    def _check(self) -> None:
        if self.is_down:
            raise MaskRayError("the store is gone")


def test_what_one_keeps_another_knows() -> None:
    registry = Registry()
    registry.refusals().add("2", "it was slow")
    another = registry.refusals()
    assert another.reason("2") == "it was slow"
    assert another.knows("2")
    assert another.reason("1") is None and not another.knows("1")


def test_what_the_registry_forgets_is_forgotten() -> None:
    registry = Registry()
    refusals = registry.refusals()
    refusals.add("2", "it was slow")
    registry.kept.clear()
    assert refusals.reason("2") is None
    assert not refusals.knows("2")


def test_a_registry_that_is_away_gets_it_later() -> None:
    registry = Registry()
    registry.is_down = True
    refusals = registry.refusals()
    refusals.add("2", "it was slow")
    assert refusals.reason("2") == "it was slow"
    registry.is_down = False
    assert refusals.reason("2") == "it was slow"
    assert registry.kept == {"2": "it was slow"}
