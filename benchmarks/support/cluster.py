"""A Ray of one node for one benchmark, beside any other that runs on the machine.

`ray stop` would end every Ray here, so the processes that were started are ended by their ids.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mask_ray import processes, ray_internals
from mask_ray.processes import free_port

_START_TIMEOUT_S = 120
_OBJECT_STORE_BYTES = 2**30


@dataclass(frozen=True)
class Cluster:
    """Where it is.

    Args:
        dashboard: URL that jobs are submitted to.
        environment: For commands that use it.
    """

    dashboard: str
    environment: dict[str, str]


@contextmanager
def running(num_cpus: int, home: Path) -> Iterator[Cluster]:
    """Start Ray, and end it afterwards.

    Args:
        num_cpus: What it believes to have.
        home: MASK_RAY_HOME of its jobs.

    Raises:
        MaskRayError: it did not start; the message holds the end of its log.
    """
    address = f"127.0.0.1:{free_port()}"
    dashboard_port = free_port()
    # AF_UNIX paths below it must stay under 108 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        environment = _environment(address, home)
        # `ray start` makes none itself.
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], env=environment, capture_output=True
        )
        log = Path(folder, "head.log")
        head = processes.start(
            _head_command(address, dashboard_port, num_cpus, folder),
            environment,
            log,
            name="Ray",
            is_ready=lambda: _answers(environment),
            start_timeout_s=_START_TIMEOUT_S,
        )
        with processes.stopping(head):
            yield Cluster(f"http://127.0.0.1:{dashboard_port}", environment)


def _environment(address: str, home: Path) -> dict[str, str]:
    bin_folder = Path(sys.executable).parent
    own = {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "MASK_RAY_HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    return ray_internals.START_ENVIRONMENT | os.environ | own


def _head_command(address: str, dashboard_port: int, num_cpus: int, folder: str) -> list[str]:
    host, _, port = address.partition(":")
    ports = {
        "port": port,
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        # Any that are free, where the default range may be another cluster's too.
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    return [
        *("ray", "start", "--head", "--block", f"--node-ip-address={host}"),
        *(f"--{name}={value}" for name, value in ports.items()),
        *(f"--dashboard-host={host}", f"--temp-dir={folder}", "--disable-usage-stats"),
        *(f"--num-cpus={num_cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
    ]


def _answers(environment: dict[str, str]) -> bool:
    return subprocess.run(["ray", "status"], env=environment, capture_output=True).returncode == 0
