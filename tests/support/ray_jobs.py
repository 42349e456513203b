"""Jobs as a user runs them: a command of its own, against the module's Ray."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.support.interrupts import accept_sigint
from tests.support.project import ROOT

# The smallest model there is, trained from nothing.
SMALL = [
    *("--image-size", "96", "--alpha", "0.35"),
    *("--backbone-weights", "none", "--batch-size", "16"),
    *("--no-data-report", "--robustness-images", "5", "--no-quantize"),
]


@dataclass
class Job:
    """A command that has ended."""

    returncode: int
    lines: list[str] = field(repr=False)
    stderr: str = field(repr=False)

    @property
    def log(self) -> str:
        return "".join(self.lines) + self.stderr

    @property
    def result(self) -> dict[str, Any]:
        """The line of JSON that a job ends with."""
        assert self.returncode == 0, self.log[-3000:]
        result: dict[str, Any] = json.loads(self.lines[-1])
        return result

    @property
    def run_id(self) -> str:
        found = re.search(r"MLflow run (\w{32})", self.log)
        assert found, self.log[-3000:]
        return found[1]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


# Called with the command's process when a line holds the text, the first time only.
Events = dict[str, Callable[[subprocess.Popen[str]], None]]


def run_job(module: str, *flags: str, env: dict[str, str], events: Events | None = None) -> Job:
    """Run a job to its end."""
    waiting = dict(events or {})
    lines = []
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=accept_sigint,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for text in [text for text in waiting if text in line]:
                waiting.pop(text)(process)
        process.wait()
        stderr.seek(0)
        job = Job(process.returncode, lines, stderr.read())
    assert not waiting, f"never printed: {list(waiting)}; {job.log[-3000:]}"
    return job


def kill_one(name: str) -> None:
    """SIGKILL to the newest of Ray's processes of this name."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if (process.info["cmdline"] or [""])[0].startswith(f"ray::{name}")
    ]
    max(found, key=lambda process: process.info["create_time"]).kill()
