"""Lines that say how far long work has come, and the silence of those that say nothing."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EVERY_S = 10.0


def say(line: str) -> None:
    """Print once: Ray Train also logs what goes to a wrapped `sys.stdout`."""
    print(line, file=sys.__stdout__, flush=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Send what is written to standard error elsewhere, also by C++.

    TensorFlow reports as errors, at import and at export, that it found no GPU.
    """
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


class Progress:
    """Says every ten seconds how many images of a piece of work are done, and what is left.

    Args:
        title: What the lines begin with.
        num_images: How many there are in all; None where nobody knows.
        shown: Whether to say anything; of many workers, one should.
        unit: What is counted, where it is not images.
    """

    def __init__(
        self, title: str, num_images: int | None, *, shown: bool = True, unit: str = "images"
    ) -> None:
        self._title = title
        self._num_images = num_images
        self._unit = unit
        self._shown = shown
        self._done = 0
        self._started: float | None = None

    def add(self, num_images: int) -> None:
        """Count these as done."""
        now = time.perf_counter()
        if self._started is None:
            # The first batch also compiles or warms up, which says nothing of those to come.
            self._started, self._said, self._first = now, now, num_images
        self._done += num_images
        if self._shown and now - self._said >= _EVERY_S:
            self._said = now
            rate = (self._done - self._first) / (now - self._started)
            of_all = left = ""
            if self._num_images is not None and rate:
                of_all = f"/{self._num_images}"
                left = f"  {(self._num_images - self._done) / rate:.0f} s left"
            say(
                f"{self._title}  {self._done}{of_all} {self._unit}  {rate:.0f} {self._unit}/s{left}"
            )
