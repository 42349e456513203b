"""`make demo`, in small: every step is the real one."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.demo_run import DemoRun


def test_goes_from_drawn_faces_to_http_answers_and_leaves_nothing_running(demo: DemoRun) -> None:
    for name in ("with_mask", "without_mask"):
        answer = rf'{name}: 200 {{"label":.*"model":{{"name":"mask-detector","version":"1"}}}}'
        assert re.search(answer, demo.stdout)
    assert "ray job submit --working-dir . -- python -m jobs.train" in demo.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{demo.home}/mlflow.db" in demo.stdout
    assert "then http://127.0.0.1:5000/#/experiments/1/runs?" in demo.stdout
    assert demo.left_running == []


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
