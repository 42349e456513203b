"""The command-line client: how it is started, and what it printed."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.project import ROOT

CLASSIFIED = {
    "label": "with_mask",
    "probability": 0.994,
    "probabilities": {"with_mask": 0.994, "without_mask": 0.006},
    "model": "mask-detector",
    "version": "3",
    "error": None,
}


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        (row,) = self.rows
        return row["error"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mask_ray.client", *map(str, arguments)]


def start(folder: Path, *arguments: str | Path, **options: Any) -> subprocess.Popen[Any]:
    """Start the client in a folder.

    Args:
        folder: Its working directory.
        arguments: Flags and files.
        options: Further arguments of `Popen`.
    """
    return subprocess.Popen(command(*arguments), cwd=folder, env=environment(), **options)


def environment(**variables: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "", **variables}


Run = Callable[..., Finished]
