"""Importing does nothing, imports point down, and each system is used in one place."""

import ast
from pathlib import Path

import pytest

from tests.support.fresh_python import python
from tests.support.project import ROOT

PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}


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
    """What a module takes from Ray, or overrides of it, that begins with an underscore."""
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
            case ast.FunctionDef(name="_initialize_and_run_controller" as name):
                names.append(f"ray.train.v2.api.DataParallelTrainer.{name}")
    return [name for name in names if name.startswith("ray.") and "._" in name]


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray._private import worker",
        "from ray.train.v2._internal.constants import is_v2_enabled",
        "ray._private.worker._global_node",
        "dataset.context._execution_idx = 0",
        "def _initialize_and_run_controller(self): ...",
    ],
)
def test_private_names_of_ray_are_found(source: str) -> None:
    assert private_names_of_ray(source)


def test_private_names_of_ray_are_used_in_one_folder() -> None:
    using = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "mask_ray").rglob("*.py"))
        if private_names_of_ray(path.read_text())
    ]
    folder = "mask_ray/ray_internals"
    assert using == [f"{folder}/__init__.py", f"{folder}/train_controller.py"]
