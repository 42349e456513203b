"""The demo in small: what it printed, and what it left."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mask_ray.processes import free_port
from tests.support import commands
from tests.support.project import ROOT
from tests.support.ray_jobs import Job, job_of

NUM_IMAGES = 160
EPOCHS = 2


@dataclass(frozen=True)
class DemoRun:
    """A demo that has ended.

    Args:
        home: Its MASK_RAY_HOME.
        stdout: What it printed.
        left_running: Processes that it started and did not end.
    """

    home: Path
    stdout: str
    left_running: list[psutil.Process]

    @property
    def job(self) -> Job:
        """The training job that it submitted, with the job's own lines."""
        submitted = self.stdout.partition("==> ray job submit ")[2].partition("\n")[2]
        lines = submitted.partition("\n\n==> ")[0].splitlines(keepends=True)
        return job_of(Job(0, lines, ""))

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The answers of the service, in the order in which it was asked."""
        found = re.findall(r"^ +\w+: 200 (.*)$", self.stdout, re.MULTILINE)
        return [json.loads(answer) for answer in found]


def run_demo(home: Path) -> DemoRun:
    """Run the demo, of drawn faces and a few epochs, in a process and with a Ray of its own."""
    commands.count("mask_ray.demo")
    # No Ray is at this address, whatever else runs on the machine.
    own = {"MASK_RAY_HOME": str(home), "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    flags = ["--data", f"synthetic:{NUM_IMAGES}", "--epochs", str(EPOCHS)]
    done = subprocess.run(
        [sys.executable, "-m", "mask_ray.demo", *flags],
        cwd=ROOT,
        env=os.environ | {"MLFLOW_TRACKING_URI": ""} | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    left_running = [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("MASK_RAY_HOME") == str(home)
    ]
    return DemoRun(home, done.stdout, left_running)
