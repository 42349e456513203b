"""Run all stages on one machine: `make demo`.

Starts a local Ray unless one is running, submits a training job, serves the trained model, sends
it one image of each class, and stops what it started. Each step is a command from the README.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import yaml

from mask_ray import cli, processes, ray_internals
from mask_ray.config import DataSettings, DemoSettings, MaskRayError, home, tracking_uri
from mask_ray.data import sources, splits
from mask_ray.images import synthetic
from mask_ray.processes import free_port, is_free
from mask_ray.serving import ingress

SERVE_CONFIG = Path("serve_config.yaml")
_BIN = Path(sys.executable).parent
_RAY_PORTS = {
    "dashboard-port": 8265,
    "dashboard-agent-listen-port": 52365,
    "ray-client-server-port": 10001,
}
# On a busy machine the agent that accepts jobs starts later than Ray waits for it.
_SUBMISSIONS = 3
_START_TIMEOUT_S = 120
# Images that a small network must see to learn the task from random weights.
_VIEWS_FROM_SCRATCH = 24_000


@dataclass(frozen=True)
class _Images:
    """Images to train on, and images to send to the service.

    Args:
        sources: Sources with absolute paths, and with archives replaced by their folders.
        count: Number of files in all sources.
        questions: One encoded image of each class that is not trained on, by name.
    """

    sources: Sequence[str]
    count: int
    questions: dict[str, bytes]


def main() -> None:
    """Run the demo. A failure is one line and exit code 1."""
    settings = cli.parse(DemoSettings, sys.argv[1:])
    try:
        with ExitStack() as started:
            run(settings, started)
            if settings.keep:
                started.pop_all()  # drops the callbacks that would stop it
    except MaskRayError as error:
        cli.fail(str(error), exit_code=1)
    except KeyboardInterrupt:
        cli.fail("stopped", exit_code=cli.INTERRUPTED)


def run(settings: DemoSettings, started: ExitStack) -> None:
    """Run all steps. Servers are registered with `started`, which stops them."""
    began = time.perf_counter()
    images = _open(settings.data)
    environment = _ray(settings, started)
    result = _train(settings, images, environment)
    _print_metrics(result)
    config, url = _serve_config()
    _serve(config, url, environment, started)
    _say(f"Asking {url}/predict")
    for name, encoded in images.questions.items():
        _ask(url, name, encoded)
    _say(f"Done in {time.perf_counter() - began:.0f} s. Where to look:")
    _print_where_to_look(result, url, environment, settings.keep)


def _ray(settings: DemoSettings, started: ExitStack) -> dict[str, str]:
    """Start Ray on this machine, unless one runs. Returns the environment of its commands."""
    environment = {"RAY_DASHBOARD_ADDRESS": "http://127.0.0.1:8265"} | os.environ
    environment |= ingress.environment(settings.haproxy) | {"PYTHONUNBUFFERED": "1"}
    environment = ingress.other_free_ports() | environment
    if "://" in environment.get("RAY_ADDRESS", ""):
        _say("RAY_ADDRESS is the URL of a dashboard, which the demo does not use: it runs here")
        del environment["RAY_ADDRESS"]
    environment["PATH"] = f"{_BIN}{os.pathsep}{environment['PATH']}"
    if _runs(environment):
        _say("Using the Ray that is running")
        _check_nothing_is_served(environment)
        return environment
    # Another Ray of this machine may have the usual ports.
    ports = {name: port if is_free(port) else free_port() for name, port in _RAY_PORTS.items()}
    ports["port"] = free_port()
    environment["RAY_ADDRESS"] = f"127.0.0.1:{ports['port']}"
    environment["RAY_DASHBOARD_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"
    head = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    head += ["--dashboard-host=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
    head += [f"--{name}={port}" for name, port in ports.items()]
    head += [f"--num-cpus={max(settings.num_workers, os.cpu_count() or 1)}"]
    _say("Starting Ray")
    # `ray start` does not create a token itself.
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, capture_output=True)
    dashboard = environment["RAY_DASHBOARD_ADDRESS"]
    # `ray status` would ask too, and takes seconds of CPU to start. The dashboard starts last.
    _start("Ray", head, environment, started, lambda: _status_of(dashboard) is not None)
    return environment


def _runs(environment: dict[str, str]) -> bool:
    """Return whether Ray's commands would find a Ray with this environment."""
    address = environment.get("RAY_ADDRESS") or ray_internals.last_started_address()
    # `ray status` waits half a minute for a Ray that has ended.
    return (
        address is not None
        and processes.answers(address)
        and _succeeds(["ray", "status"], environment)
    )


def _check_nothing_is_served(environment: dict[str, str]) -> None:
    """Stop if Serve has applications, because the end of `serve run` would end them too."""
    status = subprocess.run(
        ["serve", "status"], env=environment, capture_output=True, text=True, check=False
    )
    applications = (yaml.safe_load(status.stdout) or {}).get("applications") or {}
    if applications:
        raise MaskRayError(
            f"the running Ray already serves {', '.join(applications)}, which the demo would end; "
            "end it first with `serve shutdown`"
        )


def _train(settings: DemoSettings, images: _Images, environment: dict[str, str]) -> dict[str, Any]:
    """Submit the training job, print its log, and return its result."""
    command = ["python", "-m", "jobs.train", *_train_flags(settings, images)]
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", *command]
    _say(" ".join(map(sources.shown, submit)))
    for _ in range(_SUBMISSIONS):
        lines, succeeded = _run_and_print(submit, environment)
        if succeeded or any("submitted successfully" in line for line in lines):
            break
    results = [line for line in lines if line.startswith('{"run_id"')]
    if not succeeded or not results:
        raise MaskRayError("training did not succeed; its log is above")
    result: dict[str, Any] = json.loads(results[-1])
    return result


def _run_and_print(command: list[str], environment: dict[str, str]) -> tuple[list[str], bool]:
    """Run a command and print its output. Returns the lines, and whether it succeeded."""
    lines = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return lines, process.returncode == 0


def _train_flags(settings: DemoSettings, images: _Images) -> list[str]:
    flags: dict[str, Any] = {"num-workers": settings.num_workers}
    flags |= {"backbone-weights": _absolute(settings.backbone_weights)}
    if settings.backbone_weights == "none":
        # Small enough to train from random weights on two cores in minutes.
        epochs = math.ceil(_VIEWS_FROM_SCRATCH / (0.7 * images.count))
        flags |= {"image-size": 96, "alpha": 0.35, "batch-size": 32, "learning-rate": 0.004}
        flags |= {"finetune-epochs": settings.epochs or max(5, epochs)}
    elif settings.epochs:
        flags |= {"finetune-epochs": settings.epochs}
    if settings.epochs:
        # What was asked for is served, also where recall is still chance after so few epochs.
        flags |= {"min-recall": 0}
    named = [("data", source) for source in images.sources] + list(flags.items())
    return [text for name, value in named for text in (f"--{name}", str(value))]


def _absolute(backbone_weights: str) -> str:
    """Make the path absolute, because a submitted job runs in another folder."""
    if backbone_weights in ("none", "imagenet"):
        return backbone_weights
    path = Path(backbone_weights).expanduser().absolute()
    if not path.is_file():
        raise MaskRayError(
            f"backbone_weights must be imagenet, none or an existing .h5 file; got {path}"
        )
    return str(path)


def _print_metrics(result: dict[str, Any]) -> None:
    test, seconds = result["test"], result["seconds"]
    _say(f"{result['model_uri']} on {test['num_images']} test images")
    print(f"  accuracy {test['accuracy']:.4f}   log loss {test['log_loss']:.4f}", flush=True)
    for name in test["recall"]:
        precision, recall = test["precision"][name], test["recall"][name]
        print(f"  {name}: precision {precision:.4f}   recall {recall:.4f}", flush=True)
    print("  " + ", ".join(f"{stage} {s:.0f} s" for stage, s in seconds.items()), flush=True)


def _open(data: str) -> _Images:
    """Fetch the data, and choose one image of each class that is not trained on.

    Raises:
        DataError: as `jobs.train`; or the test split lacks a class.
    """
    if sources.is_synthetic(data):
        count = sources.num_drawn(data)
        unseen = map(synthetic.encode, (count, count + 1))
        return _Images([data], count, {name: jpeg for jpeg, name in unseen})
    fetched = sources.fetch(data)
    labelled = sources.list_labelled(fetched)
    return _Images(sources.several(fetched), len(labelled.files), _test_images(labelled))


def _test_images(labelled: sources.Labelled) -> dict[str, bytes]:
    """Read one encoded image of each class from the test split, by class and file name."""
    files = splits.of_files(labelled, DataSettings(data="any"))
    tested = files.filter(pc.equal(files["split"], "test"))
    images = {}
    for label, class_name in enumerate(labelled.class_names):
        first = tested.filter(pc.equal(tested["label"], label)).slice(0, 1)
        if not len(first):
            raise MaskRayError(f"{class_name} has too few images: none falls into the test split")
        (path,), ((encoded, _),) = labelled.reader.names(first), labelled.reader.contents(first)
        images[f"{class_name}/{Path(path).name}"] = encoded
    return images


def _serve_config() -> tuple[Path, str]:
    """Return serve_config.yaml and its URL; if its port is taken, a copy with a free port."""
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    http = config["http_options"]
    if is_free(http["port"]):
        return SERVE_CONFIG, f"http://127.0.0.1:{http['port']}"
    taken, http["port"] = http["port"], free_port()
    _say(f"Port {taken} is taken; serving on {http['port']}")
    copy = home() / "demo_serve_config.yaml"
    copy.write_text(yaml.safe_dump(config))
    return copy, f"http://127.0.0.1:{http['port']}"


def _serve(config: Path, url: str, environment: dict[str, str], started: ExitStack) -> None:
    command = ["serve", "run", str(config)]
    _say(" ".join(command))

    healthz = f"{url}/healthz"
    _start("the service", command, environment, started, lambda: _status_of(healthz) == 200)


def _ask(url: str, name: str, encoded: bytes) -> None:
    octets = {"Content-Type": "application/octet-stream"}
    response = httpx.post(
        f"{url}/predict", content=encoded, headers=octets, timeout=30, trust_env=False
    )
    print(f"  {name}: {response.status_code} {response.text}", flush=True)
    if response.status_code != 200:
        raise MaskRayError(f"the service rejected {name}")


def _print_where_to_look(
    result: dict[str, Any], url: str, environment: dict[str, str], keep: bool
) -> None:
    from mask_ray import tracking

    runs = tracking.Run(result["run_id"]).list_path()
    print(f"  MLflow      mlflow ui --backend-store-uri {tracking_uri()}")
    print(f"              then http://127.0.0.1:5000/{runs}")
    print(f"  Service     {url}/docs")
    print(f"  Dashboard   {environment['RAY_DASHBOARD_ADDRESS']}   (token: ray get-auth-token)")
    if keep:
        print("  To end it   serve shutdown -y; ray stop", flush=True)
    else:
        print(
            "  make demo KEEP=1 leaves service and dashboard running; make serve starts the first"
        )


def _start(
    name: str,
    command: list[str],
    environment: dict[str, str],
    started: ExitStack,
    is_ready: Callable[[], bool],
) -> None:
    """Start a server with its output in a file, and wait for it. `started` will stop it."""
    descriptor, log = tempfile.mkstemp(prefix="_".join(command[:2]), suffix=".log")
    os.close(descriptor)
    server = processes.start(
        command,
        environment,
        Path(log),
        name=name,
        is_ready=is_ready,
        start_timeout_s=_START_TIMEOUT_S,
    )
    started.callback(processes.stop, server)


def _status_of(url: str) -> int | None:
    """Ask a server of this machine; return the status of its answer, None if there is none."""
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return None


def _succeeds(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _say(line: str) -> None:
    print(f"\n==> {line}", flush=True)


if __name__ == "__main__":
    main()
