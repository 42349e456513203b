"""What every test gets: the marker of its folder, its own MASK_RAY_HOME, a clean environment.

Nothing here imports Ray, MLflow or TensorFlow before a test needs it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# All are read when Ray, TensorFlow, ONNX Runtime and MLflow are imported.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mask_ray.config import tracking_uri
from mask_ray.ray_internals import START_ENVIRONMENT
from tests.support import commands
from tests.support.demo_run import DemoRun, run_demo
from tests.support.project import ROOT

os.environ.update(START_ENVIRONMENT)

TESTS = ROOT / "tests"
# Several whole jobs are killed and resumed in one test.
FAULTS_TIMEOUT_S = 3600


# The longest first, so that no process of `pytest -n` is left with a long test at the end.
FOLDERS = ("faults", "e2e", "integration", "unit")
SESSION_RAY, DEMO = "session_ray", "demo"
TRAINING, SERVING = "a Ray that trains", "a Ray that serves"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and order and group tests for `pytest -n`.

    Tests that use a Ray, the session's or their own, run in two groups, each in one process: those
    that train, and those that serve, which mostly wait. Others stay with those of their file.
    """
    for item in items:
        folder = _folder(item)
        item.add_marker(folder)
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if folder == "faults":
            item.add_marker(pytest.mark.timeout(FAULTS_TIMEOUT_S))
    items.sort(key=lambda item: (_rank(_group(item)), FOLDERS.index(_folder(item))))
    commands.is_limited = not any(item.get_closest_marker("faults") for item in items)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name parameters of many bytes by their argument: an archive holds the time it was made."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def _group(item: pytest.Item) -> str:
    path = str(item.path.relative_to(TESTS))
    fixtures = getattr(item, "fixturenames", ())
    if DEMO in fixtures:
        return TRAINING
    if item.get_closest_marker("starts_ray") is None and SESSION_RAY not in fixtures:
        return path
    return SERVING if path.startswith(("e2e", "integration/serving")) else TRAINING


def _rank(group: str) -> int:
    return [TRAINING, SERVING, group].index(group)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the job commands that a process of `pytest -n` started."""
    commands.started.extend(getattr(node, "workeroutput", {}).get("job commands", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the job commands of this process to the one that started it, if any."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["job commands"] = commands.started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many jobs were started as commands."""
    if commands.started:
        terminalreporter.write_line(f"{len(commands.started)} job commands")


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


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The demo: a model trained by two workers, calibrated, registered, champion, and served."""
    return run_demo(tmp_path_factory.mktemp("demo"))


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
