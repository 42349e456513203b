"""A process that decodes for another: `python -m mask_ray.images.decoding_process FD`.

It imports the decoder once, and then forks a worker for each memory of pixels that comes over the
socket FD. The worker's own socket goes back over it. So a worker that has to be ended is replaced
in milliseconds, and all share the memory of the libraries.

A worker reads a batch, and writes its pixels to that memory. It answers with a line for each image:
`p`, the pixels are there, or `e`, the error's name and its text. Lines of images that take
milliseconds go together. It ends when its socket is closed, and it cannot take more memory than
four times what was predicted, nor than the limits of the image allow, whatever a file makes of its
decoder.
"""

import gc
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from mask_ray.images import messages
from mask_ray.images.decode import Examined, decode_examined
from mask_ray.images.errors import ImageError
from mask_ray.images.shared_pixels import SharedPixels

PIXELS, ERROR = b"p", b"e"
ERROR_SEPARATOR = b"\0"
ANSWER_SEPARATOR = b"\n"
PROCESS_ID = struct.Struct("=q")

# How long the answers of images that are done may wait for the others of their batch. Each message
# wakes a thread of the replica.
_TOGETHER_S = 0.05
# Enough of an error's text.
_MAX_ERROR_LENGTH = 1_000

# For the arrays and buffers that are there at any size.
_SLACK_BYTES = 64 * 1024 * 1024
# Libraries reserve more than they use: libwebp 20 KB for a group of codes that takes 6.
_RESERVED_RATIO = 4

# An image's file, and the side of the square that it is wanted in.
Request = tuple[Examined, int]


def main() -> None:
    """Fork workers until the socket is closed."""
    # Ctrl-C in a terminal reaches every process; this one ends when its socket does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    _decode_in_one_thread()
    # What is here stays, in memory that all workers share.
    gc.freeze()
    while memories := socket.recv_fds(control, 1, 1)[1]:
        ours, theirs = socket.socketpair()
        process_id = os.fork()
        if process_id == 0:
            control.close()
            theirs.close()
            pixels = SharedPixels(memories[0])
            os.close(memories[0])
            _work(ours, pixels)
            os._exit(0)
        ours.close()
        os.close(memories[0])
        with theirs:
            socket.send_fds(control, [PROCESS_ID.pack(process_id)], [theirs.fileno()])


def _work(connection: socket.socket, pixels: SharedPixels) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base_bytes = _data_bytes()
    with suppress(EOFError, OSError):
        while True:
            # Nothing here refers to a batch while the next one is awaited.
            _decode(pickle.loads(messages.receive(connection)), connection, pixels, base_bytes)


def _decode(
    batch: Sequence[Request],
    connection: socket.socket,
    pixels: SharedPixels,
    base_bytes: int | None,
) -> None:
    answers: list[bytes] = []
    sent_s = time.monotonic()
    places = pixels.places(image_size for _, image_size in batch)
    for number, ((examined, _), place) in enumerate(zip(batch, places, strict=True), 1):
        _limit_memory(base_bytes, examined)
        answers.append(_answer(examined, place))
        pixels.num_done = number
        if number == len(batch) or time.monotonic() - sent_s > _TOGETHER_S:
            messages.send(connection, ANSWER_SEPARATOR.join(answers))
            answers.clear()
            sent_s = time.monotonic()


def _decode_in_one_thread() -> None:
    """Keep decoders from starting a thread for each core, whose stacks count as memory."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1


def _answer(examined: Examined, place: NDArray[np.uint8]) -> bytes:
    """Decode an image to its place, and return the answer to it."""
    try:
        place[:] = decode_examined(examined, len(place))
        return PIXELS
    except ImageError as error:
        text = " ".join(str(error).split())[:_MAX_ERROR_LENGTH].encode(errors="replace")
        return ERROR + type(error).__name__.encode() + ERROR_SEPARATOR + text


def _limit_memory(base_bytes: int | None, examined: Examined) -> None:
    if base_bytes is not None:
        most_bytes = min(_RESERVED_RATIO * examined.num_bytes, examined.max_bytes)
        limit = base_bytes + _SLACK_BYTES + most_bytes
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )


def _data_bytes() -> int | None:
    """Return what counts against RLIMIT_DATA now; None where the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
