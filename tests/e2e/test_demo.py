"""`make demo`, in small: every step is the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mask_ray.ports import free_port
from tests.support import commands
from tests.support.project import ROOT


@pytest.mark.starts_ray
def test_goes_from_drawn_faces_to_http_answers_and_leaves_nothing_running(home: Path) -> None:
    commands.count("mask_ray.demo")
    # No Ray is at this address, whatever else runs on the machine.
    own = {"MASK_RAY_HOME": str(home), "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run(
        [sys.executable, "-m", "mask_ray.demo", "--data", "synthetic:160", "--epochs", "1"],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("with_mask", "without_mask"):
        answer = rf'{name}: 200 {{"label":.*"model":{{"name":"mask-detector","version":"1"}}}}'
        assert re.search(answer, done.stdout)
    assert "ray job submit --working-dir . -- python -m jobs.train" in done.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db" in done.stdout
    assert still_running(home) == []


def still_running(home: Path) -> list[psutil.Process]:
    """Processes whose state is in this folder."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("MASK_RAY_HOME") == str(home)
    ]


def test_a_mistake_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mask_ray.demo", "--data", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r"error: a source must be .*; there is nothing at .*/nowhere\. .*\n", done.stderr
    )
