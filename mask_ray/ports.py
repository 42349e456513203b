"""Finds ports of this machine that nothing listens on."""

import socket


def free_port() -> int:
    """Find a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1."""
    try:
        check_listen("127.0.0.1", port)
    except OSError:
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
