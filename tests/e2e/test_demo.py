"""`make demo`, in small: every step is the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.project import ROOT


def test_goes_from_drawn_faces_to_http_answers_and_leaves_nothing_running(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mask_ray.demo", "--data", "synthetic:160", "--epochs", "1"],
        cwd=ROOT,
        env=os.environ | {"MASK_RAY_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("with_mask", "without_mask"):
        answer = rf'{name}: 200 {{"label":.*"model":{{"name":"mask-detector","version":"1"}}}}'
        assert re.search(answer, done.stdout)
    assert "ray job submit --working-dir . -- python -m jobs.train" in done.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db" in done.stdout
    assert subprocess.run(["ray", "status"], capture_output=True).returncode != 0


def test_a_mistake_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mask_ray.demo", "--data", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"error: data must be an existing folder .*\n", done.stderr)
