"""Decodes in processes of its own, so that what takes too long can be ended.

No library's decoder can be interrupted, and a thread cannot be ended. Predicted cost bounds what a
file may ask for; this bounds what a file takes whose cost was predicted wrong.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from mask_ray.images import messages
from mask_ray.images.decode import RGBArray
from mask_ray.images.decoding_process import ERROR_SEPARATOR, PIXELS, PROCESS_ID, Request
from mask_ray.images.errors import (
    DecodingStoppedError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
)

# How long the first process may take to import the decoder, and to fork another.
_START_TIMEOUT_S = 60.0
# How often an image is tried whose process ended, which the image need not have caused.
_MAX_ATTEMPTS = 2
# Processes that parse hostile files inherit nothing else, such as MASK_RAY_TOKENS or cloud keys.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ERRORS = {kind.__name__: kind for kind in (ImageError, ImageFormatError, ImageTooLargeError)}


class DecodersError(Exception):
    """The processes cannot be started."""


class Decoders:
    """The process that others are forked from. It ends with this one.

    Args:
        timeout_s: How long one image may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def decoder(self) -> "Decoder":
        """Return a decoder for one thread, with a process of its own."""
        return Decoder(self)

    def fork(self) -> tuple[int, socket.socket]:
        """Start a process, and return its id and the connection to it.

        Raises:
            DecodersError: it does not start.
        """
        with self._lock:
            try:
                return self._fork()
            except (OSError, EOFError):
                # The server ended. Its successor either starts or says why not.
                self._close()
            try:
                return self._fork()
            except (OSError, EOFError) as error:
                raise DecodersError(f"no process for decoding starts: {error}") from error

    def close(self) -> None:
        """End the processes; those that decode end after the image that they are at."""
        with self._lock:
            self._close()

    def _fork(self) -> tuple[int, socket.socket]:
        if self._control is None:
            self._start()
        assert self._control is not None
        self._control.sendall(b"f")
        message, descriptors, *_ = socket.recv_fds(self._control, PROCESS_ID.size, 1)
        if not descriptors:
            raise EOFError("it ended before it had started another")
        connection = socket.socket(fileno=descriptors[0])
        # Unlike one that this process opens: a copy elsewhere would keep the other side alive.
        connection.set_inheritable(False)
        connection.settimeout(self.timeout_s)
        return PROCESS_ID.unpack(message)[0], connection

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_TIMEOUT_S)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mask_ray.images.decoding_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_environment(),
            )
        self._control = ours

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


class Decoder:
    """Decodes images one after the other in a process, for one thread at a time."""

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._process: tuple[int, socket.socket] | None = None
        self._deadline_s = 0.0

    @property
    def is_in_time(self) -> bool:
        """Whether an image is being decoded, and not for longer than it may."""
        return time.monotonic() < self._deadline_s

    def start(self) -> None:
        """Start the process now, rather than with the first image.

        Raises:
            DecodersError: it does not start.
        """
        if self._process is None:
            self._process = self._decoders.fork()

    def decode(
        self, requests: Sequence[Request], on_done: Callable[[float], None] = lambda _: None
    ) -> list[RGBArray | ImageError]:
        """Decode images, each to uint8 of shape (image_size, image_size, 3).

        Args:
            requests: Examined files, and the side that each is wanted in.
            on_done: Called after each image with the seconds that it took.

        Returns:
            For each image, in order, its pixels or its error. `DecodingStoppedError` stands for an
            image that took longer than the time limit, or that ended the process twice.

        Raises:
            DecodersError: no process can be started.
        """
        outcomes: list[RGBArray | ImageError] = []
        num_attempts = 0
        while len(outcomes) < len(requests):
            left = requests[len(outcomes) :]
            num_done = len(outcomes)
            for outcome in self._decode_until_ended(left, on_done):
                outcomes.append(outcome)
            if len(outcomes) == len(requests):
                break
            num_attempts = num_attempts + 1 if len(outcomes) == num_done else 1
            if num_attempts == _MAX_ATTEMPTS:
                name = requests[len(outcomes)][0].format_name
                outcomes.append(
                    DecodingStoppedError(f"{name} image ended the process that decoded it")
                )
                num_attempts = 0
        return outcomes

    def close(self) -> None:
        """End the process."""
        self._deadline_s = 0.0
        if self._process is not None:
            process_id, connection = self._process
            self._process = None
            connection.close()
            _kill(process_id)

    def _decode_until_ended(
        self, requests: Sequence[Request], on_done: Callable[[float], None]
    ) -> Iterator[RGBArray | ImageError]:
        """Yield outcomes until all are there, or the process has ended."""
        timeout_s = self._decoders.timeout_s
        self.start()
        assert self._process is not None
        _, connection = self._process
        try:
            began_s = self._begin()
            messages.send(connection, pickle.dumps([*requests], pickle.HIGHEST_PROTOCOL))
            for examined, image_size in requests:
                answer = _receive(connection)
                if answer is None:
                    self.close()
                on_done(time.monotonic() - began_s)
                if answer is None:
                    yield DecodingStoppedError(
                        f"{examined.format_name} image took over {timeout_s:g} s to decode, which "
                        "was then given up"
                    )
                    return
                yield _outcome(answer, image_size)
                began_s = self._begin()
        except (EOFError, OSError):
            self.close()
        except BaseException:
            # Answers that nobody has read would be taken for those of the next batch.
            self.close()
            raise
        finally:
            self._deadline_s = 0.0

    def _begin(self) -> float:
        now_s = time.monotonic()
        self._deadline_s = now_s + self._decoders.timeout_s
        return now_s


def _environment() -> dict[str, str]:
    """Return what the processes need of the environment: no tokens, no keys, no home."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # Import the same modules as this process. Start no threads before a fork.
    modules = os.pathsep.join(filter(None, sys.path))
    return kept | {"PYTHONPATH": modules, "OPENBLAS_NUM_THREADS": "1"}


def _receive(connection: socket.socket) -> bytearray | None:
    """Receive an answer; None if it does not come in time."""
    try:
        return messages.receive(connection)
    except TimeoutError:
        return None


def _outcome(answer: bytearray, image_size: int) -> RGBArray | ImageError:
    if answer.startswith(PIXELS):
        pixels = np.frombuffer(answer, np.uint8, offset=1)
        pixels.flags.writeable = False
        return pixels.reshape(image_size, image_size, 3)
    name, _, text = answer[1:].partition(ERROR_SEPARATOR)
    # Nothing is unpickled: a process that decodes hostile files is not trusted.
    kind = _ERRORS.get(name.decode(errors="replace"), ImageError)
    return kind(text.decode(errors="replace"))


def _kill(process_id: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)
