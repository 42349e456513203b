"""Lines of long work: one in ten seconds, with the rate and what is left."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mask_ray import progress
from mask_ray.progress import Progress, quiet_libraries, say


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


def test_libraries_are_quiet_only_as_long_as_they_are_to_be(
    capfd: pytest.CaptureFixture[str],
) -> None:
    num_open = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(ImportError), quiet_libraries():
        os.write(2, b"could not find any GPU\n")
        raise ImportError
    os.write(2, b"what matters\n")
    assert capfd.readouterr().err == "what matters\n"
    assert len(list(Path("/dev/fd").iterdir())) == num_open
