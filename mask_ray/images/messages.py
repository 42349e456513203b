"""Messages over a stream socket: four bytes of length, then that many bytes.

`multiprocessing.connection` does the same, but a wait with a time limit costs it as much as sending
a photo.
"""

import socket
import struct

_LENGTH = struct.Struct("=I")


def send(connection: socket.socket, *parts: bytes | memoryview) -> None:
    """Send one message, given in parts of single bytes.

    Raises:
        OSError: the other side has ended, or takes longer than the socket's time limit.
    """
    # In one call: the length alone would wake the other side, only to wait for the rest.
    whole = [_LENGTH.pack(sum(map(len, parts))), *parts]
    num_sent = connection.sendmsg(whole)
    for part in whole:
        if num_sent < len(part):
            connection.sendall(memoryview(part)[num_sent:])
        num_sent = max(0, num_sent - len(part))


def receive(connection: socket.socket, max_bytes: int | None = None) -> bytearray:
    """Receive one message.

    Raises:
        EOFError: the other side has closed the connection, or its message is over the limit.
        TimeoutError: nothing came within the socket's time limit.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if max_bytes is not None and length > max_bytes:
        raise EOFError(f"a message may have {max_bytes} bytes; got {length}")
    return _receive(connection, length)


def _receive(connection: socket.socket, num_bytes: int) -> bytearray:
    received = bytearray(num_bytes)
    left = memoryview(received)
    while left:
        number = connection.recv_into(left)
        if number == 0:
            raise EOFError("the connection was closed")
        left = left[number:]
    return received
