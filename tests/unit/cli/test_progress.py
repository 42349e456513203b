"""Progress lines, one in ten seconds, and the log of whatever libraries print."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mask_ray import progress
from mask_ray.progress import Progress, say
from tests.support.interrupts import accept_sigint
from tests.support.project import ROOT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds go by; they don't of themselves."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_a_line_goes_past_what_stands_in_for_standard_output(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    say("features: found")
    assert capfd.readouterr().out == "features: found\n"


def test_a_line_says_what_is_done_how_fast_and_what_is_left(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("features", 1000)
    progress.add(100)
    clock(10)
    progress.add(200)
    assert capfd.readouterr().out == "features  300/1000 images  20 images/s  35 s left\n"


def test_the_first_batch_is_done_but_does_not_count_as_speed(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("head 1/3", 100)
    clock(60)
    progress.add(50)
    clock(10)
    progress.add(10)
    assert capfd.readouterr().out == "head 1/3  60/100 images  1 images/s  40 s left\n"


def test_lines_are_ten_seconds_apart(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("features", 1000)
    for _ in range(36):
        progress.add(10)
        clock(1)
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()] == [
        "110/1000",
        "210/1000",
        "310/1000",
    ]


def test_the_rate_is_that_of_the_whole_work(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("features", 1000)
    progress.add(0)
    for num_images in (300, 100):
        clock(10)
        progress.add(num_images)
    assert [line.split()[3] for line in capfd.readouterr().out.splitlines()] == ["30", "20"]


def test_short_work_and_work_that_is_not_shown_say_nothing(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    short, hidden = Progress("short", 10), Progress("hidden", 10, shown=False)
    for _ in range(10):
        short.add(1)
        clock(0.9)
        hidden.add(1)
        clock(0.1)
    clock(60)
    hidden.add(1)
    assert capfd.readouterr().out == ""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Keep a log. Not a fixture: pytest changes `sys.stdout` between set-up and test."""
    progress.start_log(path)
    try:
        yield
    finally:
        progress.end_log()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "train.log"


def test_libraries_print_to_the_log_and_only_what_is_said_to_the_terminal(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logging_to(log):
        print("a plan of execution")
        print("deprecated", file=sys.stderr)
        os.write(2, b"could not find any GPU\n")
        say("training on 2 workers")
        assert progress.log_path() == log

    assert capfd.readouterr() == ("training on 2 workers\n", "")
    assert log.read_text().splitlines() == [
        "a plan of execution",
        "deprecated",
        "could not find any GPU",
        "training on 2 workers",
    ]


def test_results_and_errors_reach_the_terminal_past_the_log(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logging_to(log):
        print("{}", file=progress.stdout(), flush=True)
        print("error: stopped", file=progress.stderr(), flush=True)
        assert log.read_text() == ""
    assert capfd.readouterr() == ("{}\n", "error: stopped\n")


def test_a_note_is_for_the_log_alone(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(log):
        progress.note("Traceback ...")
    progress.note("nowhere")
    assert capfd.readouterr() == ("", "")
    assert log.read_text() == "Traceback ...\n"


def test_a_log_lasts_until_its_end(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(log):
        print("before")
    print("after")
    os.write(2, b"what matters\n")
    assert capfd.readouterr() == ("after\n", "what matters\n")
    assert log.read_text() == "before\n"


def test_a_log_that_stays_empty_is_deleted(log: Path) -> None:
    with logging_to(log):
        assert log.exists() and progress.log_path() is None
    assert not log.exists()


def test_a_log_leaves_no_files_open(tmp_path: Path) -> None:
    num_open = len(list(Path("/dev/fd").iterdir()))
    with logging_to(tmp_path / "one.log"):
        progress.start_log(tmp_path / "another.log")
    assert len(list(Path("/dev/fd").iterdir())) == num_open


def test_a_full_disk_does_not_end_the_job(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logging_to(small_disk / "train.log"):
        for _ in range(5):
            print("x" * 100_000)
        say("training on 2 workers")
    assert capfd.readouterr() == ("training on 2 workers\n", "")


def test_the_driver_prints_what_a_worker_said_and_no_other_line_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_in_worker", lambda: True)
    say("training on 2 workers\nscratch 1/3")
    printed = capfd.readouterr().out.splitlines()

    progress.relay({"lines": ["Execution plan of Dataset", *printed], "pid": 1, "is_err": False})
    assert capfd.readouterr().out == "training on 2 workers\nscratch 1/3\n"


def test_the_driver_prints_the_events_of_the_autoscaler_and_not_its_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As ray/autoscaler/_private/monitor.py writes them into monitor.log.
    lines = [
        "2026-11-27 23:13:57,841\tINFO autoscaler.py:408 -- ",
        "======== Autoscaler status: 2026-11-27 23:13:57.841228 ========",
        " 0.0/2.0 CPU",
        "2026-11-27 23:13:57,842\tINFO monitor.py:440 -- :event_summary:Resized to 4 CPUs.",
    ]
    monkeypatch.setattr("ray._private.worker.autoscaler_log_fyi_printed", True)
    # Ray asks the cluster, which is not there.
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda: False)
    progress.relay({"lines": lines, "pid": "autoscaler"})
    assert capfd.readouterr().out == "autoscaler: Resized to 4 CPUs.\n"


def test_a_workers_line_after_an_unfinished_one_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    progress.relay({"lines": ["loading ... [mask_ray] training on 2 workers"], "pid": 1})
    assert capfd.readouterr().out == "training on 2 workers\n"


def test_a_log_that_was_deleted_hides_nothing(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(log):
        print("a plan of execution")
        log.unlink()
        assert progress.log_path() is None
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def test_a_logging_handler_made_meanwhile_outlives_the_log(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logging_to(log):
        print("early")
        handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "late"}))
    assert capfd.readouterr() == ("", "")
    assert log.read_text() == "early\nlate\n"


def test_an_uncaught_error_is_shown_on_the_terminal(log: Path) -> None:
    code = f"""
from pathlib import Path
from mask_ray import progress

progress.start_log(Path({str(log)!r}))
print("a plan of execution")
raise ValueError("something new")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith("ValueError: something new\n")
    assert log.read_text() == "a plan of execution\n"


# What `ray job submit --working-dir .` does before it sends anything.
PACK = """
import sys
import ray
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from mask_ray import progress

for hook in (lambda **submission: None, progress.quiet_submission):
    hook(working_dir=".")
    upload_working_dir_if_needed(
        {"working_dir": "."}, include_gitignore=True, upload_fn=lambda *args, **options: None
    )
    print("packed", file=sys.stderr)
"""


def test_a_submission_prints_nothing_of_the_upload(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n")
    (tmp_path / ".venv").mkdir()
    packed = subprocess.run(
        [sys.executable, "-c", PACK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    loud, quiet, _ = packed.stderr.split("packed\n")
    assert ".gitignore" in loud and "Directory '.venv'" in loud
    assert quiet == ""


# As `ray job submit` calls its hook, gets an id, and follows the log until Ctrl-C.
SUBMIT = """
import asyncio, os, signal
from mask_ray import progress

async def follow():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)

def submit(job_id=None, is_sent=True):
    progress.quiet_submission(working_dir=".")
    if is_sent:
        client, job_id = object(), "raysubmit_1"
    asyncio.run(follow())

submit(is_sent=SENT)
"""


@pytest.mark.parametrize("is_sent", [True, False])
def test_ctrl_c_on_a_submission_says_that_the_job_goes_on(is_sent: bool) -> None:
    stopped = subprocess.run(
        [sys.executable, "-c", SUBMIT.replace("SENT", str(is_sent))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=accept_sigint,
    )
    says_so = (
        "Ctrl-C stops only this view: the job goes on. To stop it: ray job stop raysubmit_1\n"
        "To view it again: ray job logs --follow raysubmit_1\n"
    )
    assert (says_so in stopped.stderr) == is_sent
    assert ("Traceback" in stopped.stderr) != is_sent
    assert stopped.returncode == 130 if is_sent else stopped.returncode != 0


def test_a_terminal_is_not_commanded_by_names_of_files(capfd: pytest.CaptureFixture[str]) -> None:
    progress.say("a/\x1b[2J\r\x9b.jpg\tä\nnext")
    assert capfd.readouterr().out == "a/\\x1b[2J\\r\\x9b.jpg\tä\nnext\n"
