"""Servers that a benchmark starts, and ends with all that they have started."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from mask_ray.config import MaskRayError


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    name: str,
    is_ready: Callable[[], bool],
    start_timeout_s: float,
    stop_timeout_s: float,
    cwd: Path | None = None,
) -> Iterator[None]:
    """Start a server, wait until it is ready, and end it afterwards.

    Raises:
        MaskRayError: it did not start; the message holds the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # A shell without job control makes its background commands deaf to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + start_timeout_s
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise MaskRayError(f"{name} did not start; the end of its log:\n{tail}")
            time.sleep(0.5)
        yield
    finally:
        _stop(process, stop_timeout_s)


def _stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """As Ctrl-C would; what outlives that is ended one by one."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs([psutil.Process(process.pid), *started], timeout=timeout_s)
    for survivor in alive:
        survivor.kill()
    process.wait()
