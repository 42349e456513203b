"""Servers that are started, waited for, and ended with all that they have started; free ports."""

import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from mask_ray.config import MaskRayError

Process = subprocess.Popen[bytes]

_STOP_TIMEOUT_S = 60

# Above those that Ray's workers listen on by default, below those that Linux gives out by itself
# (32768 and up, `net.ipv4.ip_local_port_range`), and macOS (49152 and up).
_PORTS = range(20_000, 32_768)
_MOST_TRIES = 1000


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    name: str,
    is_ready: Callable[[], bool],
    start_timeout_s: float,
    cwd: Path | None = None,
) -> Process:
    """Start a server, in a session of its own, and wait until it is ready.

    Args:
        command: Of the server.
        environment: Of the server.
        log: File for what it prints.
        name: What an error calls it.
        is_ready: Asked twice a second.
        start_timeout_s: How long it may take.
        cwd: Its working directory; None for that of this process.

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
                raise MaskRayError(f"{name} did not start; the end of {log}:\n{tail}")
            time.sleep(0.5)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process: Process) -> None:
    """End a server as Ctrl-C would; what outlives that by a minute is ended one by one."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs([psutil.Process(process.pid), *started], timeout=_STOP_TIMEOUT_S)
    for survivor in alive:
        survivor.kill()
    process.wait()


@contextmanager
def stopping(process: Process) -> Iterator[None]:
    """`stop` the server afterwards."""
    try:
        yield
    finally:
        stop(process)


def free_port() -> int:
    """Find a port of 127.0.0.1 that nothing listens on, for a server that starts later.

    It is none that the system gives to a client, or to a server that asks for any port: such a one
    may be taken by the time that the server listens.

    Raises:
        OSError: a thousand tries found none.
    """
    for _ in range(_MOST_TRIES):
        port = secrets.choice(_PORTS)
        if is_free(port):
            return port
    raise OSError(f"none of {_MOST_TRIES} ports of {_PORTS.start} to {_PORTS.stop - 1} is free")


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1."""
    try:
        check_listen("127.0.0.1", port)
    except OSError:
        return False
    return True


def answers(address: str) -> bool:
    """Return whether a server accepts connections at `host:port`, within two seconds."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True


def check_listen(host: str, port: int) -> None:
    """Check that a server could listen there.

    Raises:
        OSError: it could not, and why.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Connections of a server that ended a moment ago do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
