"""A process that decodes for another: `python -m mask_ray.images.decoding_process FD`.

It imports the decoder once, and then forks a worker for each byte that comes over the socket FD.
The worker's own socket goes back over it. So a worker that has to be ended is replaced in
milliseconds, and all share the memory of the libraries.

A worker reads a batch, and answers with one message for each image as soon as it is done: `p` and
the pixels, or `e`, the error's name and its text. It ends when its socket is closed, and it cannot
take more memory than four times what was predicted, nor than the limits of the image allow,
whatever a file makes of its decoder.
"""

import os
import pickle
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin

from mask_ray.images import messages
from mask_ray.images.decode import Examined, decode_examined
from mask_ray.images.errors import ImageError

PIXELS, ERROR = b"p", b"e"
ERROR_SEPARATOR = b"\0"
PROCESS_ID = struct.Struct("=q")

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
    while control.recv(1):
        ours, theirs = socket.socketpair()
        process_id = os.fork()
        if process_id == 0:
            control.close()
            theirs.close()
            _work(ours)
            os._exit(0)
        ours.close()
        with theirs:
            socket.send_fds(control, [PROCESS_ID.pack(process_id)], [theirs.fileno()])


def _work(connection: socket.socket) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base_bytes = _data_bytes()
    while True:
        try:
            batch: list[Request] = pickle.loads(messages.receive(connection))
            for examined, image_size in batch:
                _limit_memory(base_bytes, examined)
                messages.send(connection, *_answer(examined, image_size))
            # Not kept until the next batch has come.
            del batch, examined
        except (EOFError, OSError):
            return


def _decode_in_one_thread() -> None:
    """Keep decoders from starting a thread for each core, whose stacks count as memory."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1


def _answer(examined: Examined, image_size: int) -> tuple[bytes, bytes | memoryview]:
    """Return the parts of the message for an image."""
    try:
        pixels = decode_examined(examined, image_size)
        return PIXELS, np.ascontiguousarray(pixels).reshape(-1).data
    except ImageError as error:
        name = type(error).__name__
        return ERROR, name.encode() + ERROR_SEPARATOR + str(error).encode(errors="replace")


def _limit_memory(base_bytes: int | None, examined: Examined) -> None:
    if base_bytes is not None:
        most_bytes = min(_RESERVED_RATIO * examined.num_bytes, examined.max_bytes)
        limit = base_bytes + _SLACK_BYTES + most_bytes
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )


def _data_bytes() -> int | None:
    """Return what counts against RLIMIT_DATA now. None: only Linux tells, and only it counts."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
