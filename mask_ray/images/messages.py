"""Messages over a stream socket: four bytes of length, then that many bytes.

`multiprocessing.connection` does the same, but a wait with a time limit costs it as much as sending
a photo.
"""

import socket
import struct

_LENGTH = struct.Struct("=I")


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message.

    Raises:
        OSError: the other side has ended, or takes longer than the socket's time limit.
    """
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def receive(connection: socket.socket) -> bytearray:
    """Receive one message.

    Raises:
        EOFError: the other side has closed the connection.
        TimeoutError: nothing came within the socket's time limit.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
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
