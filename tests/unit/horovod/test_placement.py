"""Workers run in the bundles that are reserved for them, as far as these are on a node."""

from types import SimpleNamespace
from typing import Any

import pytest

from mask_ray.ray_internals import train_controller

GROUP: Any = SimpleNamespace()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Bundles whose node is lost."""
    found: set[int] = set()

    def placed(group: Any, wanted: range) -> list[int]:
        assert group is GROUP
        return [bundle for bundle in wanted if bundle not in found]

    monkeypatch.setattr(train_controller, "placed_bundles", placed)
    return found


@pytest.fixture
def workers() -> Any:
    """A group of two to three workers, whose first bundle is 4; nothing of Ray is started."""
    workers_class: Any = train_controller._workers_in(GROUP, first_bundle=4)
    group = object.__new__(workers_class)
    group._train_run_context = SimpleNamespace(scaling_config=SimpleNamespace(max_workers=3))
    return group


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch, workers: Any) -> dict[str, Any]:
    """What Ray's own class is asked to create."""
    asked: dict[str, Any] = {}
    original = type(workers).__mro__[1]
    monkeypatch.setattr(
        original, "_create_workers", lambda _, number, **options: asked.update(options)
    )
    return asked


def test_workers_run_in_their_bundles(
    workers: Any, created: dict[str, Any], lost: set[int]
) -> None:
    workers._create_workers(3)
    assert created == {"placement_group_bundle_indices": [4, 5, 6]}


def test_fewer_workers_run_where_a_node_is_left(
    workers: Any, created: dict[str, Any], lost: set[int]
) -> None:
    lost.add(4)
    workers._create_workers(2)
    assert created == {"placement_group_bundle_indices": [5, 6]}


def test_the_group_is_ready_when_enough_bundles_are_on_a_node(workers: Any, lost: set[int]) -> None:
    lost.add(5)
    ready = [
        workers._create_placement_group(None, SimpleNamespace(num_workers=number)).wait(0)
        for number in (2, 3)
    ]
    assert ready == [True, False]


def test_the_end_of_the_workers_leaves_the_group(workers: Any) -> None:
    held = workers._create_placement_group(None, SimpleNamespace(num_workers=1))
    held.shutdown()
    assert held.placement_group is GROUP
