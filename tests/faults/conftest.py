"""A Ray for each module, since its processes are killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_cluster import own_ray


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of a module; its own `home` fixture gives this."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(module_home: Path) -> Iterator[dict[str, str]]:
    """The environment of a command for a Ray of two CPUs, with the test as one of its drivers."""
    with own_ray(module_home) as environment:
        yield environment
