"""Modules and functions stay short, and an object is whole once it is constructed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import ROOT

FOLDERS = ("mask_ray", "jobs", "benchmarks", "docs", ".github")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Another library constructs these, and calls a method to set them up.
SET_UP_LATER = {"ImageAPI", "_UntilTarget"}


def classes(source: str) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))


def set_fields(function: ast.AST) -> Iterator[str]:
    """The fields of `self` that a method sets."""
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def called_methods(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                yield name


def late_fields(cls: ast.ClassDef) -> list[str]:
    """Fields that a method sets and neither the class nor its constructor has."""
    methods = {each.name: each for each in cls.body if isinstance(each, Function)}
    constructors = [methods[name] for name in ("__init__", "__post_init__") if name in methods]
    parts = [
        methods[name]
        for each in constructors
        for name in set(called_methods(each)) & methods.keys()
    ]
    declared = {
        target.id
        for each in cls.body
        for target in getattr(each, "targets", [getattr(each, "target", None)])
        if isinstance(target, ast.Name)
    }
    there = declared.union(*map(set_fields, [*constructors, *parts]))
    return sorted({name for each in methods.values() for name in set_fields(each)} - there)


@pytest.mark.parametrize(
    ("method", "late"),
    [
        ("def add(self): self.x = 1", ["x"]),
        ("def add(self): self.x, y = 1, 2", ["x"]),
        ("def add(self): self.x += 1", ["x"]),
        ("def __init__(self): self.x = 1", []),
        ("def __init__(self): self.make()\n  def make(self): self.x = 1", []),
        ("x: int\n  def add(self): self.x = 1", []),
    ],
)
def test_fields_that_appear_late_are_found(method: str, late: list[str]) -> None:
    (found,) = classes(f"class A:\n  {method}")
    assert late_fields(found) == late


def test_no_field_appears_after_the_constructor() -> None:
    inherited = {"_NodeRendezvousServer": ["_httpd", "_listen_thread"]}
    late = {
        each.name: late_fields(each)
        for path in MODULES
        for each in classes(path.read_text())
        if each.name not in SET_UP_LATER and late_fields(each)
    }
    assert late == inherited


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_function_is_longer_than_50_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function) and length(node) > 50
    ]
    assert long == []


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_no_module_is_longer_than_400_lines(folder: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".js", ".css", ".j2", ".sh"}
        and (lines := len(Path(path).read_text().splitlines())) > 400
    }
    assert long == {}
