"""Importing does nothing, imports point down, and each system is used in one place."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import ROOT

PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}

IMPORT_EVERYTHING = """
import importlib, json, logging, pkgutil, socket, sys

def refuse(*_):
    raise AssertionError("imports must not open connections")

socket.socket.connect = socket.socket.connect_ex = refuse

imported = []
for name in ("mask_ray", "jobs"):
    package = importlib.import_module(name)
    imported.append(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
        imported.append(module.name)

import mlflow, ray
print(json.dumps({
    "imported": imported,
    "ray_is_running": ray.is_initialized(),
    "run_is_open": mlflow.active_run() is not None,
    "root_handlers": [repr(handler) for handler in logging.getLogger().handlers],
    "root_level": logging.getLogger().level,
}))
"""


def python(code: str, folder: Path) -> str:
    """Run code in an empty folder that is also home; what it prints."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "MASK_RAY_HOME": str(folder / "home" / "state"),
        # What these write of their own accord is not ours.
        "KERAS_HOME": str(folder / "keras"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    (folder / "home").mkdir()
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "home",
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


@pytest.fixture(scope="module")
def after(folder: Path) -> dict[str, Any]:
    """How a process is left by importing every module."""
    (line,) = python(IMPORT_EVERYTHING, folder).splitlines()
    return json.loads(line)


@pytest.mark.slow
def test_every_module_can_be_imported(after: dict[str, Any]) -> None:
    files = [
        path.relative_to(ROOT).with_suffix("")
        for package in ("mask_ray", "jobs")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert sorted(after["imported"]) == sorted(
        ".".join(file.parts).removesuffix(".__init__") for file in files
    )


@pytest.mark.slow
def test_importing_makes_no_files(after: dict[str, Any], folder: Path) -> None:
    assert list((folder / "home").rglob("*")) == []


@pytest.mark.slow
def test_importing_starts_neither_ray_nor_a_run(after: dict[str, Any]) -> None:
    assert not after["ray_is_running"]
    assert not after["run_is_open"]


@pytest.mark.slow
def test_importing_leaves_logging_alone(after: dict[str, Any]) -> None:
    assert after["root_handlers"] == []
    assert after["root_level"] == 30  # WARNING, Python's own


def test_settings_need_nothing_but_pydantic(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import mask_ray.config
print(*{name.partition(".")[0] for name in set(sys.modules) - before
        if "site-packages" in (getattr(sys.modules[name], "__file__", None) or "")})
"""
    assert set(python(code, tmp_path).split()) == PYDANTIC


def private_names_of_ray(source: str) -> list[str]:
    """What a module imports from Ray, or reaches through it, that begins with an underscore."""
    names = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                names += [f"{module}.{alias.name}" for alias in node.names]
            case ast.Attribute(attr="_execution_idx"):
                names.append("ray.data.DataContext._execution_idx")
            case ast.Attribute():
                names.append(ast.unparse(node))
    return [name for name in names if name.startswith("ray.") and "._" in name]


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray._private import worker",
        "from ray.train.v2._internal.constants import is_v2_enabled",
        "ray._private.worker._global_node",
        "dataset.context._execution_idx = 0",
    ],
)
def test_private_names_of_ray_are_found(source: str) -> None:
    assert private_names_of_ray(source)


def test_private_names_of_ray_are_used_in_one_module() -> None:
    using = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "mask_ray").rglob("*.py"))
        if private_names_of_ray(path.read_text())
    ]
    assert using == ["mask_ray/ray_internals.py"]


@pytest.mark.parametrize(
    "linter",
    [
        ["lint-imports", "--no-cache", "--no-logo"],
        ["ruff", "check", "--select=TID251", "--no-cache"],
    ],
)
def test_imports_keep_the_rules_of_pyproject(linter: list[str]) -> None:
    """Layers and gateways are told in pyproject.toml alone; `make check` holds them too."""
    program, *arguments = linter
    linted = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
