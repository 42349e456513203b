"""Ports for servers that start later."""

import random
import socket

import pytest

from mask_ray import processes
from mask_ray.processes import answers, free_port, is_free


def test_a_free_port_is_none_that_linux_gives_to_others() -> None:
    ports = [free_port() for _ in range(20)]
    assert max(ports) < 32_768
    assert all(is_free(port) for port in ports)


def test_processes_of_one_seed_find_different_ports() -> None:
    def find() -> list[int]:
        random.seed(0)
        return [free_port() for _ in range(3)]

    assert find() != find()


def test_a_port_that_is_listened_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert answers(f"127.0.0.1:{taken}")
        monkeypatch.setattr(processes, "_PORTS", range(taken, taken + 1))
        with pytest.raises(OSError, match="is free"):
            free_port()
