"""What every test gets: the marker of its folder, its own MASK_RAY_HOME, a clean environment.

Nothing here imports Ray, MLflow or TensorFlow before a test needs it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# All are read when Ray, TensorFlow, ONNX Runtime and MLflow are imported.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mask_ray.config import tracking_uri
from tests.support import commands
from tests.support.project import ROOT

TESTS = ROOT / "tests"
# Several whole jobs are killed and resumed in one test.
FAULTS_TIMEOUT_S = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder: unit, integration, e2e or faults."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(folder)
        if folder == "faults":
            item.add_marker(pytest.mark.timeout(FAULTS_TIMEOUT_S))
    commands.is_limited = not any(item.get_closest_marker("faults") for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many jobs were started as commands."""
    if commands.started:
        limit = f" of at most {commands.MOST}" if commands.is_limited else ""
        terminalreporter.write_line(f"{len(commands.started)} job commands{limit}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """MASK_RAY_HOME of the test. A module whose tests share one overrides this fixture."""
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK_RAY_HOME", str(home))
    # MLflow sets these as it is used, and monkeypatch only restores what it has set; empty counts
    # as unset.
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_ID",
        "MASK_RAY_GIT_COMMIT",
    ):
        monkeypatch.setenv(name, "")
    # Set but empty is an error.
    monkeypatch.delenv("MASK_RAY_TOKENS", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and weights beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder of photos and weights {folder}")
    return folder


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount point, where the tests may make one: Linux, as root."""
    folder.mkdir()
    mount = ["mount", *options, folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        # Lazily: files that are mapped into memory may still be open.
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 256 KiB."""
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root may write to."""
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs") as folder:
        yield folder


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store. To make one takes MLflow two seconds; each test gets a copy."""
    from mask_ray.tracking import ModelNotFoundError, resolve_model

    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        with pytest.raises(ModelNotFoundError):
            resolve_model("models:/nothing@champion")
    return home / "mlflow.db"


@pytest.fixture
def store(home: Path, new_store: Path) -> None:
    """An MLflow store of the test's own, under its home."""
    import mlflow

    home.mkdir()
    shutil.copy(new_store, home)
    # The store that this process has in mind is another test's.
    mlflow.set_tracking_uri(tracking_uri())


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
