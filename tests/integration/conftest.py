"""One Ray for all tests here."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import backbone_weights
from tests.support.ray_cluster import NUM_CPUS, connect, disconnect
from tests.support.ray_jobs import SMALL


@pytest.fixture(scope="session")
def session_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A Ray of two CPUs, started by `ray start`; the environment of a command that uses it."""
    from benchmarks.support import cluster
    from mask_ray.serving import ingress

    with pytest.MonkeyPatch.context() as patch:
        # Serve's errors as problem+json. Processes take it over from the one that starts Ray.
        name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
        patch.setenv(name, ingress.environment(wants_haproxy=False)[name])
        patch.setenv("MLFLOW_TRACKING_URI", "")
        home = tmp_path_factory.mktemp("session")
        with cluster.running(num_cpus=NUM_CPUS, home=home) as ray:
            yield ray.environment
            disconnect()


@pytest.fixture(scope="session")
def head_only(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run that trains the last layer alone, in a third of the time of `SMALL`."""
    weights = backbone_weights.write(tmp_path_factory.mktemp("weights") / "random.h5", alpha=0.35)
    own = ["--backbone-weights", str(weights), "--head-epochs", "2", "--augmented-views", "0"]
    return [*SMALL, *own, "--finetune-epochs", "0"]


@pytest.fixture(scope="module")
def ray_environment() -> dict[str, str]:
    """Variables of the processes that work for a module's tests; a module may override it."""
    return {}


@pytest.fixture(scope="module")
def ray_local(session_ray: Mapping[str, str], ray_environment: dict[str, str]) -> None:
    """The tests of a module as a driver of the session's Ray."""
    connect(session_ray["RAY_ADDRESS"], ray_environment)


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of a module; its own `home` fixture gives this."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(
    session_ray: Mapping[str, str], ray_local: None, module_home: Path
) -> Iterator[dict[str, str]]:
    """The environment of a job for the session's Ray, with the module's store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(module_home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        yield os.environ | {"RAY_ADDRESS": session_ray["RAY_ADDRESS"]}
