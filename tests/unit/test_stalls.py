"""A stage without progress is named within a minute, and ended when that lasts."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Event
from typing import Any

import pytest

from mask_ray import stalls
from mask_ray.stalls import SAY_AFTER_S, StalledError, Watch, watched


def watch(end_after_s: float = 600) -> Watch:
    return Watch(end_after_s, lambda: "0 of 2 CPUs free")


def test_a_stage_without_progress_is_named_once_a_minute(
    capfd: pytest.CaptureFixture[str],
) -> None:
    watching = watch()
    for silent_s in range(0, 121):
        watching.look("finetune 1/3", silent_s)
    lines = capfd.readouterr().out.splitlines()
    assert SAY_AFTER_S < 60
    assert len(lines) == 2
    assert lines[0] == ("finetune 1/3: no progress for 50 s; the cluster has 0 of 2 CPUs free")


def test_progress_begins_the_count_again(capfd: pytest.CaptureFixture[str]) -> None:
    watching = watch()
    for silent_s in (49, 1, 49, 55, 2, 51):
        watching.look("features", silent_s)
    assert len(capfd.readouterr().out.splitlines()) == 2


def test_too_long_without_progress_is_an_error_of_one_line() -> None:
    with pytest.raises(StalledError, match="features made no progress for 601 s, so it was ended"):
        watch().look("features", 601)


def test_what_comes_in_time_is_passed_on() -> None:
    assert list(watched(range(3), "reading", watch())) == [0, 1, 2]


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_source_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    """Also in a process in the background, which ignores Ctrl-C."""
    monkeypatch.setattr(stalls, "SAY_AFTER_S", 0.1)
    monkeypatch.setattr(stalls, "_LOOK_EVERY_S", 0.05)

    def never() -> Iterator[int]:
        yield 1
        Event().wait(60)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(StalledError, match="reading made no progress"):
            list(watched(never(), "reading", watch(end_after_s=0.2)))
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("handler", "is_interrupted"), [(signal.default_int_handler, True), (signal.SIG_IGN, False)]
)
def test_ctrl_c_means_what_it_meant_before(handler: Any, is_interrupted: bool) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt) if is_interrupted else nullcontext():
            for _ in watched(range(2), "reading", watch()):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_time_spent_with_an_item_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "SAY_AFTER_S", 0.1)
    monkeypatch.setattr(stalls, "_LOOK_EVERY_S", 0.02)
    for _ in watched(range(2), "reading", watch(end_after_s=0.2)):
        time.sleep(0.4)
