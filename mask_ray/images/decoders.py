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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mask_ray.images import messages, shared_pixels
from mask_ray.images.decode import RGBArray
from mask_ray.images.decoding_process import (
    ANSWER_SEPARATOR,
    ERROR_SEPARATOR,
    PIXELS,
    PROCESS_ID,
    Request,
)
from mask_ray.images.errors import (
    DecodingStoppedError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
)
from mask_ray.images.shared_pixels import SharedPixels, needed_bytes

# How long the first process may take to import the decoder, and to fork another.
_START_TIMEOUT_S = 60.0
# How often an image is tried whose process ended, which the image need not have caused.
_MAX_ATTEMPTS = 2
# Memory for pixels: a full batch with the default settings, and then some. It grows when needed.
_PIXEL_BYTES = 2 * 2**20
# A line for each image of a batch.
_MAX_MESSAGE_BYTES = 2**20
# Processes that parse hostile files inherit nothing else, such as MASK_RAY_TOKENS or cloud keys.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ERRORS = {kind.__name__: kind for kind in (ImageError, ImageFormatError, ImageTooLargeError)}


class DecodersError(Exception):
    """The processes cannot be started."""


class Process(NamedTuple):
    """A process that decodes, the connection to it, and the memory that it decodes into."""

    id: int
    connection: socket.socket
    pixels: SharedPixels


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

    def fork(self, num_bytes: int) -> "Process":
        """Start a process.

        Args:
            num_bytes: Size of the memory that it decodes into.

        Raises:
            DecodersError: it does not start.
        """
        with self._lock:
            try:
                return self._fork(num_bytes)
            except (OSError, EOFError):
                # The server ended. Its successor either starts or says why not.
                self._close()
            try:
                return self._fork(num_bytes)
            except (OSError, EOFError) as error:
                raise DecodersError(f"no process for decoding starts: {error}") from error

    def close(self) -> None:
        """End the processes; those that decode end after the image that they are at."""
        with self._lock:
            self._close()

    def _fork(self, num_bytes: int) -> "Process":
        if self._control is None:
            self._start()
        assert self._control is not None
        memory = shared_pixels.create(num_bytes)
        try:
            pixels = SharedPixels(memory)
            socket.send_fds(self._control, [b"f"], [memory])
        finally:
            os.close(memory)
        message, descriptors, *_ = socket.recv_fds(self._control, PROCESS_ID.size, 1)
        if not descriptors:
            raise EOFError("it ended before it had started another")
        connection = socket.socket(fileno=descriptors[0])
        # A received descriptor is inherited by child processes, unlike one that is opened here. A
        # child with a copy would hide from the other side that this process has closed its own.
        connection.set_inheritable(False)
        connection.settimeout(self.timeout_s)
        return Process(PROCESS_ID.unpack(message)[0], connection, pixels)

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
        self._process: Process | None = None
        self._num_bytes = _PIXEL_BYTES
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
            self._process = self._decoders.fork(self._num_bytes)

    def decode(
        self, requests: Sequence[Request], on_done: Callable[[float], None] = lambda _: None
    ) -> list[RGBArray | ImageError]:
        """Decode images, each to uint8 of shape (image_size, image_size, 3).

        Args:
            requests: Examined files, and the side that each is wanted in.
            on_done: Called after each image with the seconds that it took; for those that are done
                within 50 ms together, with their mean.

        Returns:
            For each image, in order, its pixels or its error. The pixels are read-only and valid
            until the next call. `DecodingStoppedError` stands for an image that took longer than
            the time limit, or that ended the process twice.

        Raises:
            DecodersError: no process can be started.
        """
        outcomes: dict[int, RGBArray | ImageError] = {}
        num_ended: Counter[int] = Counter()
        while left := {at: each for at, each in enumerate(requests) if at not in outcomes}:
            place, is_late = self._decode_until_ended(left, outcomes, on_done)
            if place is None:
                break
            name = requests[place][0].format_name
            num_ended[place] += 1
            if is_late:
                outcomes[place] = DecodingStoppedError(
                    f"{name} image took over {self._decoders.timeout_s:g} s to decode, which was "
                    "then given up"
                )
            elif num_ended[place] == _MAX_ATTEMPTS:
                outcomes[place] = DecodingStoppedError(
                    f"{name} image ended the process that decoded it"
                )
        return [outcomes[at] for at in range(len(requests))]

    def close(self) -> None:
        """End the process."""
        self._deadline_s = 0.0
        if self._process is not None:
            process = self._process
            self._process = None
            process.connection.close()
            _kill(process.id)

    def _decode_until_ended(
        self,
        requests: Mapping[int, Request],
        outcomes: dict[int, RGBArray | ImageError],
        on_done: Callable[[float], None],
    ) -> tuple[int | None, bool]:
        """Decode images by their place, until all are done or the process has ended.

        Args:
            requests: Those that are left.
            outcomes: Where those that are done are added.
            on_done: As in `decode`.

        Returns:
            The place of the image that the process was at when it ended, if it did, and whether
            that image took too long.
        """
        process = self._process_for([image_size for _, image_size in requests.values()])
        places = [*requests]
        num_answers, is_late = 0, False
        try:
            for outcome in self._outcomes(process, [*requests.values()], on_done):
                outcomes[places[num_answers]] = outcome
                num_answers += 1
            return None, False
        except TimeoutError:
            is_late = True
        except (EOFError, OSError):
            pass
        except BaseException:
            # Answers that nobody has read would be taken for those of the next batch.
            self.close()
            raise
        finally:
            self._deadline_s = 0.0
        self.close()
        # What is done and was not answered yet is not to blame. It is decoded again.
        num_done = max(num_answers, process.pixels.num_done)
        return places[min(num_done, len(places) - 1)], is_late

    def _outcomes(
        self, process: Process, requests: Sequence[Request], on_done: Callable[[float], None]
    ) -> Iterator[RGBArray | ImageError]:
        """Have a process decode a batch, and yield the outcome of each image.

        Raises:
            TimeoutError: an image took too long.
            EOFError, OSError: the process ended, or answers what it was not asked.
        """
        process.pixels.num_done = 0
        places = process.pixels.places(image_size for _, image_size in requests)
        began_s = self._begin()
        messages.send(process.connection, pickle.dumps(requests, pickle.HIGHEST_PROTOCOL))
        while places:
            try:
                answers = messages.receive(process.connection, _MAX_MESSAGE_BYTES).split(
                    ANSWER_SEPARATOR
                )
            except TimeoutError:
                on_done(time.monotonic() - began_s)
                raise
            if len(answers) > len(places):
                raise EOFError("more answers than images")
            last_s, began_s = began_s, self._begin()
            for answer in answers:
                on_done((began_s - last_s) / len(answers))
                yield _outcome(answer, places.pop(0))

    def _process_for(self, image_sizes: Sequence[int]) -> Process:
        """Return the process, or a new one if its memory is too small for these images."""
        num_bytes = needed_bytes(image_sizes)
        if num_bytes > self._num_bytes:
            self.close()
            self._num_bytes = num_bytes
        self.start()
        assert self._process is not None
        return self._process

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


def _outcome(answer: bytearray, pixels: RGBArray) -> RGBArray | ImageError:
    if answer == PIXELS:
        pixels.flags.writeable = False
        return pixels
    name, _, text = answer[1:].partition(ERROR_SEPARATOR)
    # Nothing is unpickled: a process that decodes hostile files is not trusted.
    kind = _ERRORS.get(name.decode(errors="replace"), ImageError)
    return kind(text.decode(errors="replace"))


def _kill(process_id: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)
