"""Jobs as a user runs them: as a command, or without the command's start in this process."""

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

import psutil
import pytest

from mask_ray import progress
from tests.support import commands
from tests.support.interrupts import accept_sigint
from tests.support.project import ROOT

# The smallest model there is, trained from nothing.
SMALLEST = [
    *("--image-size", "96", "--alpha", "0.35"),
    *("--backbone-weights", "none", "--batch-size", "16", "--robustness-images", "5"),
    # After so few epochs, recall is chance.
    *("--min-recall", "0"),
]
# Without the parts of a run that other runs show.
SMALL = [*SMALLEST, "--no-data-report", "--no-quantize"]


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


def run_job(module: str, *flags: str, env: Mapping[str, str], events: Events | None = None) -> Job:
    """Run a job to its end, as a command."""
    return _run([sys.executable, "-m", module, *flags], env, events)


def job_of(submission: Job) -> Job:
    """Return a submitted job with its own lines, without what `ray job submit` says around them."""
    lines = submission.lines
    start = next((n for n, line in enumerate(lines, 1) if "Running entrypoint" in line), 0)
    ends = [number for number, line in enumerate(lines, 1) if line.startswith("{")]
    return replace(submission, lines=lines[start : ends[-1]] if ends else lines)


def run_here(module: str, *flags: str, env: Mapping[str, str]) -> Job:
    """Run a job to its end in this process, which is a driver of its Ray.

    As in a command, without the start of a process: flags are parsed, and errors and the
    result are printed.
    """
    returncode = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        for name, value in env.items():
            if os.environ.get(name) != value:
                patch.setenv(name, value)
        patch.setattr(sys, "argv", [module, *flags])
        with _output_to(stdout, stderr):
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as ended:
                returncode = ended.code if isinstance(ended.code, int) else 1
            finally:
                progress.end_log()
        for file in (stdout, stderr):
            file.seek(0)
        return Job(returncode, stdout.readlines(), stderr.read())


@contextmanager
def _output_to(stdout: IO[str], stderr: IO[str]) -> Iterator[None]:
    """Send what this process prints to files, also what is printed past `sys.stdout`."""
    with ExitStack() as stack:
        for number, file in ((1, stdout), (2, stderr)):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(file.fileno(), number)
            stack.callback(file.flush)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            yield


def _run(command: list[str], env: Mapping[str, str], events: Events | None = None) -> Job:
    commands.count(" ".join(command))
    waiting = dict(events or {})
    lines = []
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(
            command,
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
    """SIGKILL to the newest process of this name of the Ray that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if (process.cmdline() or [""])[0].startswith(f"ray::{name}"):
                found.append(process)
    max(found, key=psutil.Process.create_time).kill()
