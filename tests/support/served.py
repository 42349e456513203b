"""The service as `make serve` runs it: Ray, `serve run` and HAProxy, each a process of its own."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.support import cluster
from mask_ray import processes
from mask_ray.processes import free_port
from mask_ray.serving import ingress
from tests.support.project import ROOT
from tests.support.slow_model import write_slow_for_red


@dataclass
class Service:
    """Where it is, and the commands that change it.

    Attributes:
        config: Content of serve_config.yaml, with the test's own settings.
    """

    url: str
    environment: dict[str, str]
    config: dict[str, Any]
    folder: Path
    ports: dict[str, int] = field(default_factory=dict)

    def deploy(self, **settings: Any) -> None:
        """`serve deploy` with other settings of the application mask-detector."""
        self.config["applications"][0]["args"] |= settings
        path = self.write_config()
        subprocess.run(
            ["serve", "deploy", str(path)], env=self.environment, check=True, capture_output=True
        )

    def write_config(self) -> Path:
        path = self.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return path

    def status(self) -> dict[str, Any]:
        """What `serve status` says of the application."""
        done = subprocess.run(
            ["serve", "status"], env=self.environment, capture_output=True, text=True, check=True
        )
        application: dict[str, Any] = yaml.safe_load(done.stdout)["applications"]["mask-detector"]
        return application

    @property
    def replicas(self) -> list[psutil.Process]:
        """Their processes."""
        return self._processes(lambda line: line.startswith("ray::ServeReplica:mask-detector"))

    @property
    def haproxies(self) -> list[psutil.Process]:
        """HAProxy, and those before it that still end their connections."""
        return self._processes(lambda line: "/haproxy -db" in line)

    def _processes(self, is_meant: Callable[[str], bool]) -> list[psutil.Process]:
        """This service's alone: other tests may run."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if is_meant(" ".join(process.info["cmdline"] or ()))
            and (process.info["environ"] or {}).get("MASK_RAY_HOME") == str(self.folder)
        ]


@contextmanager
def served(folder: Path, haproxy: bool, **settings: Any) -> Iterator[Service]:
    """Serve with these settings, on free ports."""
    names = ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP")
    ports = {f"RAY_SERVE_{name}_PORT": free_port() for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ingress.environment(haproxy).items():
            patch.setenv(name, value)
        for name, port in ports.items():
            patch.setenv(name, str(port))
        with cluster.running(num_cpus=4, home=folder) as ray:
            config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
            port = config["http_options"]["port"] = free_port()
            (usual,) = config["applications"]
            usual["args"] |= settings
            # Its model takes longer than an answer may, for a red image. It is busy then, not ill.
            slow = write_slow_for_red(folder / "slow.onnx")
            impatient = {"model_uri": str(slow), "request_timeout_s": 0.1, "max_replicas": 1}
            impatient |= {"health_check_timeout_s": 60}
            impatient |= {"decode_timeout_s": 0.0999, "max_decode_s": 0.0999}
            config["applications"].append(
                usual
                | {"name": "impatient", "route_prefix": "/impatient"}
                | {"args": usual["args"] | impatient | {"min_replicas": 1}}
            )
            url = f"http://127.0.0.1:{port}"
            environment = ray.environment | {"RAY_DASHBOARD_ADDRESS": ray.dashboard}
            service = Service(url, environment, config, folder, ports | {"http": port})
            server = processes.start(
                ["serve", "run", str(service.write_config())],
                environment,
                folder / "serve.log",
                name="the service",
                is_ready=lambda: is_ready(url),
                start_timeout_s=120,
                cwd=ROOT,
            )
            with processes.stopping(server):
                yield service


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False
