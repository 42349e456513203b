"""Importing any module does nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fresh_python import python
from tests.support.project import ROOT

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


@pytest.fixture(scope="module")
def after(folder: Path) -> dict[str, Any]:
    """How a process is left by importing every module."""
    (line,) = python(IMPORT_EVERYTHING, folder).splitlines()
    return json.loads(line)


def test_every_module_can_be_imported(after: dict[str, Any]) -> None:
    files = [
        path.relative_to(ROOT).with_suffix("")
        for package in ("mask_ray", "jobs")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert sorted(after["imported"]) == sorted(
        ".".join(file.parts).removesuffix(".__init__") for file in files
    )


def test_importing_makes_no_files(after: dict[str, Any], folder: Path) -> None:
    assert list((folder / "home").rglob("*")) == []


def test_importing_starts_neither_ray_nor_a_run(after: dict[str, Any]) -> None:
    assert not after["ray_is_running"]
    assert not after["run_is_open"]


def test_importing_leaves_logging_alone(after: dict[str, Any]) -> None:
    assert after["root_handlers"] == []
    assert after["root_level"] == 30  # WARNING, Python's own


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
