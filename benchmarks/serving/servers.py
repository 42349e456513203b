"""Each server of the comparison, as a process on this machine that is ended afterwards."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks import ROOT
from benchmarks.serving.load import JSON, MULTIPART, RAW, Form
from benchmarks.support import cluster
from mask_ray import processes
from mask_ray.config import MaskRayError
from mask_ray.processes import free_port
from mask_ray.serving import ingress

# The peers that have dependencies of their own, and what they and the project share.
_PEERS = ("litserve==0.2.19", "bentoml==1.4.39")
_SHARED = ("onnxruntime", "numpy", "pillow", "fastapi", "uvicorn")

_PROGRAMS = Path(__file__).with_name("peer_servers")
_START_TIMEOUT_S = 180


@dataclass(frozen=True)
class Models:
    """The same weights in the two files that servers want, and a folder for logs."""

    onnx: Path
    keras: Path
    class_names: Sequence[str]
    folder: Path


@dataclass(frozen=True)
class Server:
    """A way to serve.

    Args:
        form: In which it takes an image.
        run: Starts it, gives the URL that is posted to, and ends it.
    """

    name: str
    form: Form
    run: Callable[[Models], AbstractContextManager[str]]


@contextmanager
def _mask_ray(models: Models) -> Iterator[str]:
    """serve_config.yaml with another model and port, and all replicas from the start."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    arguments = config["applications"][0]["args"]
    arguments |= {"model_uri": str(models.onnx), "min_replicas": arguments["max_replicas"]}
    path = models.folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    os.environ |= ingress.environment()
    num_cpus = max(arguments["max_replicas"] * arguments["num_threads"], os.cpu_count() or 1)
    with cluster.running(num_cpus, models.folder) as ray:
        url = f"http://127.0.0.1:{port}"
        with _running(["serve", "run", str(path)], f"{url}/healthz", models, ray.environment):
            try:
                yield f"{url}/predict"
            finally:
                # HAProxy outlives a Ray that ends without it.
                shutdown = ["serve", "shutdown", "-y"]
                subprocess.run(shutdown, env=ray.environment, capture_output=True)


def _program(python: str, name: str, ready: str, *flags: str) -> Callable[[Models], Any]:
    @contextmanager
    def run(models: Models) -> Iterator[str]:
        port = free_port()
        command = [python, str(_PROGRAMS / name), f"--port={port}", *flags]
        command += _model_flags(name, models)
        url = f"http://127.0.0.1:{port}"
        with _running(command, f"{url}{ready}", models, os.environ):
            yield f"{url}/predict"

    return run


def _model_flags(name: str, models: Models) -> list[str]:
    if name == "keras_server.py":
        return [f"--model={models.keras}", f"--class-names={json.dumps(list(models.class_names))}"]
    return [f"--model={models.onnx}", f"--cores={os.cpu_count()}"]


def _bentoml(python: str) -> Callable[[Models], Any]:
    @contextmanager
    def run(models: Models) -> Iterator[str]:
        port = free_port()
        command = [python, "-m", "bentoml", "serve", "bentoml_server:Images"]
        command += [f"--working-dir={_PROGRAMS}", "--host=127.0.0.1", f"--port={port}"]
        environment = {"MODEL": str(models.onnx), "CORES": str(os.cpu_count())}
        environment |= {"BENTOML_HOME": str(models.folder), "BENTOML_DO_NOT_TRACK": "True"}
        url = f"http://127.0.0.1:{port}"
        with _running(command, f"{url}/readyz", models, os.environ | environment):
            yield f"{url}/predict"

    return run


def all_servers(peers_python: str) -> dict[str, Server]:
    """By the name they have on the command line.

    Args:
        peers_python: Interpreter of the environment that `peers_environment` makes.
    """
    own = sys.executable
    return {
        "mask_ray": Server("this project", RAW, _mask_ray),
        "fastapi": Server("bare FastAPI", RAW, _program(own, "fastapi_server.py", "/docs")),
        "litserve": Server(
            "LitServe", JSON, _program(peers_python, "litserve_server.py", "/health")
        ),
        "bentoml": Server("BentoML", MULTIPART, _bentoml(peers_python)),
        "keras": Server("keras.predict", RAW, _program(own, "keras_server.py", "/docs")),
    }


def peers_environment(folder: Path) -> str:
    """The interpreter of a virtual environment for LitServe and BentoML, made when missing.

    Raises:
        MaskRayError: it cannot be made.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        from importlib.metadata import version

        pinned = [f"{name}=={version(name)}" for name in _SHARED]
        _succeed([sys.executable, "-m", "venv", str(folder)])
        _succeed([str(python), "-m", "pip", "install", "--quiet", *_PEERS, *pinned])
    return str(python)


def _succeed(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MaskRayError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


@contextmanager
def _running(
    command: list[str], ready_url: str, models: Models, environment: Mapping[str, str]
) -> Iterator[None]:
    server = processes.start(
        command,
        environment,
        models.folder / "server.log",
        name="the server",
        is_ready=lambda: _is_ready(ready_url),
        start_timeout_s=_START_TIMEOUT_S,
        cwd=ROOT,
    )
    with processes.stopping(server):
        yield


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
