"""Progress lines on the terminal, and a log file for whatever libraries print.

A job's terminal shows the lines that `say` prints and nothing else. `start_log` sends the rest to
a file: warnings of libraries, messages of native code, and what Ray forwards from workers.
"""

import atexit
import io
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from mask_ray.files import make_private
from mask_ray.ray_internals import autoscaler_events, mute_upload, submitted_job_of_caller

_EVERY_S = 10.0

# Begins a line that a worker says. `relay` finds such lines in what Ray forwards to the driver.
_MARK = "[mask_ray] "

# All but tabs and line breaks.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(line: str) -> None:
    """Print a line on the terminal, also from a worker of the job, and copy it to the log."""
    # Not `sys.stdout`: the log takes it, and in a worker Ray Train logs what is printed there.
    if _in_worker():
        line = "\n".join(f"{_MARK}{part}" for part in line.splitlines())
    _print(line)
    note(line)


def note(text: str) -> None:
    """Write to the log, if there is one, and not to the terminal."""
    if _log is not None:
        _log.write(f"{text}\n")


def leave_echo() -> None:
    """Begin a new line on a terminal, which has echoed `^C` on the current one."""
    if stderr().isatty():
        print(file=stderr(), flush=True)


def printable(text: str) -> str:
    """Escape control characters, which names of files may hold and a terminal would obey."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _print(line: str) -> None:
    # In one write, since Ray's thread and the main thread may print at the same time.
    print(f"{printable(line)}\n", end="", file=sys.__stdout__, flush=True)


def relay(batch: dict[str, Any]) -> None:
    """Print the lines that workers said, and the events of Ray's autoscaler.

    Args:
        batch: Output of one worker, as Ray hands it to a handler of forwarded output.
    """
    if batch.get("pid") == "autoscaler":
        for event in autoscaler_events(batch["lines"]):
            _print(f"autoscaler: {event}")
        return
    for line in batch["lines"]:
        # A library may have left an unfinished line before it.
        _, mark, said = line.partition(_MARK)
        if mark:
            _print(said)


def _in_worker() -> bool:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


class _LogFile(io.FileIO):
    """A file whose full disk does not end the job that writes to it."""

    def write(self, content: Any) -> int:
        """Append, or drop what cannot be written."""
        with suppress(OSError):
            super().write(content)
        return len(content)


class _Log:
    """Replaces standard output of Python and standard error of the process by a file.

    Args:
        path: File to append to; its folder is created.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        make_private(path.parent)
        self.path = path
        self._file = io.TextIOWrapper(
            io.BufferedWriter(_LogFile(path, "a")), "utf-8", "replace", line_buffering=True
        )
        self.stdout = sys.stdout
        self.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
        self._python_stderr = sys.stderr
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout = sys.stderr = self._file
        # Native code and child processes write to the descriptor.
        os.dup2(self._file.fileno(), 2)

    def write(self, text: str) -> None:
        """Append to the file."""
        self._file.write(text)

    def is_empty(self) -> bool:
        """Return whether nothing has been logged, also after the file was deleted."""
        return os.fstat(self._file.fileno()).st_size == 0

    def restore(self) -> None:
        """Give standard output and error back."""
        sys.stdout, sys.stderr = self.stdout, self._python_stderr
        os.dup2(self.stderr.fileno(), 2)
        self.stderr.close()
        # Not closed here: a logging handler may still hold the file.
        self._file.flush()
        if self.is_empty():
            self.path.unlink(missing_ok=True)


_log: _Log | None = None


def start_log(path: Path) -> None:
    """Send all that this process prints to a file, except what is said, until `end_log`.

    Args:
        path: File to append to; its folder is created.

    Raises:
        OSError: the file cannot be opened.
    """
    global _log
    end_log()
    _log = _Log(path)
    # Registered before Ray is imported, so that what Ray prints at the exit is logged too.
    atexit.register(end_log)
    sys.excepthook = _show_uncaught


def end_log() -> None:
    """Print on the terminal again. An empty log file is deleted."""
    global _log
    if _log is not None:
        _log.restore()
        _log = None
        atexit.unregister(end_log)
        sys.excepthook = sys.__excepthook__


def _show_uncaught(*error: Any) -> None:
    """Show the traceback of an uncaught error on the terminal instead of in the log."""
    end_log()
    sys.__excepthook__(*error)


def log_path() -> Path | None:
    """Return the log file; None if nothing has been logged, or the file was deleted."""
    if _log is None or _log.is_empty() or not _log.path.exists():
        return None
    return _log.path


def stdout() -> TextIO:
    """Standard output of the terminal, also while there is a log."""
    return sys.stdout if _log is None else _log.stdout


def stderr() -> TextIO:
    """Standard error of the terminal, also while there is a log."""
    return sys.stderr if _log is None else _log.stderr


def quiet_submission(**submission: Any) -> None:
    """Mute the upload of `ray job submit`, and let Ctrl-C say that the job goes on running.

    `RAY_JOB_SUBMIT_HOOK` names this function.

    Args:
        submission: What is submitted, unused.
    """
    mute_upload()
    submitted_job = submitted_job_of_caller()

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        if job := submitted_job():
            print(
                f"\nCtrl-C stops only this view: the job goes on. To stop it: ray job stop {job}\n"
                f"To view it again: ray job logs --follow {job}",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(130)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


class Progress:
    """Prints a line every ten seconds: how many images are done, how fast, and the time left.

    Args:
        title: Start of each line.
        num_images: Number of images in all; None where it is not known.
        shown: Whether to print. Of several workers, one should.
        unit: Name of what is counted, if not images.
    """

    def __init__(
        self, title: str, num_images: int | None, *, shown: bool = True, unit: str = "images"
    ) -> None:
        self._title = title
        self._num_images = num_images
        self._unit = unit
        self._shown = shown
        self._done = 0
        # How many images the first batch had, and when it came.
        self._first: tuple[int, float] | None = None
        self._printed_s = 0.0

    def add(self, num_images: int) -> None:
        """Count images as done, and print a line if one is due."""
        now = time.perf_counter()
        self._done += num_images
        if self._first is None:
            # It also compiles or warms up, so its speed predicts nothing.
            self._first, self._printed_s = (num_images, now), now
        elif self._shown and now - self._printed_s >= _EVERY_S:
            self._printed_s = now
            num_first, first_s = self._first
            say(self._line((self._done - num_first) / (now - first_s)))

    def _line(self, rate: float) -> str:
        total = left = ""
        if self._num_images is not None and rate:
            total = f"/{self._num_images}"
            left = f"  {(self._num_images - self._done) / rate:.0f} s left"
        return f"{self._title}  {self._done}{total} {self._unit}  {rate:.0f} {self._unit}/s{left}"
