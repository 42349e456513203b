"""Two Ray nodes with addresses of their own: Horovod talks over a network, and a node is lost.

Each node is a network namespace of this machine, and a pair of virtual interfaces is the cable
between them. They share the file system, as the nodes of a cluster share `MASK_RAY_HOME`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.support.polling import wait_until
from tests.support.project import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
RAY_PORT = 6379
MLFLOW_PORT = 5000

NUM_EPOCHS = 12
# Of 160 images at least 96 are to train on, 16 a step. MobileNetV2 of width 0.35 has 0.39 million
# trainable weights of 4 bytes, whose gradients leave each node in every step.
SENT_PER_EPOCH_BYTES = 96 // 16 * 390_000 * 4

# So that a lost node is noticed, and not waited for, within half a minute; two by default.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}
START_TIMEOUT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}


@dataclass(frozen=True)
class Node:
    """A network namespace that stands for a machine."""

    namespace: str
    address: str
    interface: str
    folder: Path

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self._within(*command), text=True, cwd=ROOT, **options)

    def run(self, *command: str, **options: Any) -> str:
        done = subprocess.run(
            self._within(*command), capture_output=True, text=True, timeout=90, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _within(self, *command: str) -> list[str]:
        # A name that leads nowhere: no part of it may matter.
        rename = 'hostname nowhere.invalid && exec "$@"'
        own = ["unshare", "--uts", "sh", "-c", rename, "sh"]
        return ["ip", "netns", "exec", self.namespace, *own, *command]

    def listens(self, port: int) -> bool:
        return self.run("ss", "-Hltn", f"sport = :{port}") != ""

    def sent_bytes(self) -> int:
        """What this node has put on the cable so far."""
        return int(self.run("cat", f"/sys/class/net/{self.interface}/statistics/tx_bytes"))

    def num_train_workers(self) -> int:
        titles = [" ".join(process.info["cmdline"] or ()) for process in self._processes()]
        return sum(title.startswith("ray::RayTrainWorker") for title in titles)

    def lose_power(self) -> None:
        """End without a word to the other node: no connection is closed, no request refused."""
        run("ip", "-netns", self.namespace, "link", "set", self.interface, "down")
        self.kill()

    def kill(self) -> None:
        """End everything that runs here, at once."""
        deadline = time.monotonic() + 30
        while processes := self._processes():
            assert time.monotonic() < deadline, f"still there: {processes}"
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)

    def _processes(self) -> list[psutil.Process]:
        pids = {int(pid) for pid in run("ip", "netns", "pids", self.namespace).split()}
        return [process for process in psutil.process_iter(["cmdline"]) if process.pid in pids]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes on one cable, with no route to anywhere else; what runs in them ends with them."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if missing := [tool for tool in ("ip", "ss", "unshare") if shutil.which(tool) is None]:
        pytest.skip(f"needs {' and '.join(missing)} (apt-get install iproute2 util-linux)")
    with ExitStack() as stack:
        # Paths of Unix sockets are limited to 107 characters, and pytest's folders are deep.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-")))
        nodes = (
            Node(f"head-{os.getpid()}", "10.77.0.1", "cable-a", folder / "a"),
            Node(f"other-{os.getpid()}", "10.77.0.2", "cable-b", folder / "b"),
        )
        for node in nodes:
            add_namespace(node, stack)
        join(*nodes)
        yield nodes


def add_namespace(node: Node, stack: ExitStack) -> None:
    added = subprocess.run(
        ["ip", "netns", "add", node.namespace], capture_output=True, text=True, check=False
    )
    if added.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {added.stderr.strip()}")
    stack.callback(run, "ip", "netns", "delete", node.namespace)
    stack.callback(node.kill)
    node.folder.mkdir()


def join(a: Node, b: Node) -> None:
    ends = [["name", node.interface, "netns", node.namespace] for node in (a, b)]
    run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for node in (a, b):
        ip = ["ip", "-netns", node.namespace]
        run(*ip, "address", "add", f"{node.address}/24", "dev", node.interface)
        run(*ip, "link", "set", "lo", "up")
        run(*ip, "link", "set", node.interface, "up")


def start_mlflow(node: Node, folder: Path) -> None:
    with (folder / "mlflow.log").open("w") as log:
        node.popen(
            *[sys.executable, "-m", "mlflow", "server", "--workers=1"],
            *[f"--host={node.address}", f"--port={MLFLOW_PORT}"],
            *[f"--backend-store-uri={store_of(folder)}"],
            f"--artifacts-destination={folder / 'artifacts'}",
            stdout=log,
            stderr=log,
        )


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def start_ray(head: Node, other: Node, cluster: dict[str, str]) -> None:
    # Two CPUs each, so that neither has room for two workers of 1.5.
    common = ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
    roles = {
        head: [
            *["--head", f"--port={RAY_PORT}", "--include-dashboard=false"],
            f"--system-config={json.dumps(HEALTH_CHECKS)}",
        ],
        other: [f"--address={head.address}:{RAY_PORT}"],
    }
    for node, role in roles.items():
        own = [f"--node-ip-address={node.address}", f"--temp-dir={node.folder / 'ray'}"]
        node.run(RAY, "start", *role, *common, *own, env=cluster)


@dataclass
class Outcome:
    """What was seen of a run that lost a node."""

    store: str
    default_routes: str
    lost_in_epoch: int = 0
    lines: list[str] = field(default_factory=list)
    num_workers: tuple[int, ...] = ()
    sent_bytes: tuple[int, ...] = ()
    exit_code: int | None = None
    logged: str = field(default="", repr=False)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def result(self) -> dict[str, Any]:
        (line,) = (line for line in self.lines if line.startswith('{"run_id"'))
        result: dict[str, Any] = json.loads(line)
        return result


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("shared")
    with two_nodes() as (head, other):
        cluster = os.environ | {
            "RAY_ADDRESS": f"{head.address}:{RAY_PORT}",
            "MLFLOW_TRACKING_URI": f"http://{head.address}:{MLFLOW_PORT}",
            "MASK_RAY_HOME": str(folder / "home"),
        }
        start_mlflow(head, folder)
        start_ray(head, other, cluster)
        wait_until(lambda: head.listens(MLFLOW_PORT), "the MLflow server")
        seen = Outcome(store_of(folder), head.run("ip", "route", "show", "default"))
        job = start_job(head, cluster)
        watch(job, seen, head, other, folder / "home" / "train")
        seen.exit_code = job.wait(timeout=60)
    (log,) = (folder / "home" / "logs").iterdir()
    seen.logged = log.read_text()
    return seen


def watch(
    job: subprocess.Popen[str], seen: Outcome, head: Node, other: Node, checkpoints: Path
) -> None:
    """Read what the job prints to its end.

    When an epoch ends after a checkpoint is there, the other node is taken away.
    """
    before: tuple[int, int] | None = None
    assert job.stdout is not None
    for line in job.stdout:
        seen.lines.append(line)
        ended = re.search(rf"scratch (\d+)/{NUM_EPOCHS}  loss", line)
        if ended is None or seen.num_workers:
            continue
        if before is None:
            before = head.sent_bytes(), other.sent_bytes()
        elif list(checkpoints.glob("*/checkpoint_*/state.json")):
            seen.sent_bytes = head.sent_bytes() - before[0], other.sent_bytes() - before[1]
            seen.num_workers = head.num_train_workers(), other.num_train_workers()
            seen.lost_in_epoch = int(ended[1])
            other.lose_power()


def start_job(head: Node, cluster: dict[str, str]) -> subprocess.Popen[str]:
    flags = (
        "--data synthetic:160 --num-workers 2 --min-workers 1 --cpus-per-worker 1.5 "
        "--image-size 96 --alpha 0.35 --backbone-weights none --batch-size 16 "
        "--no-quantize --no-data-report --robustness-images 5 "
        f"--finetune-epochs {NUM_EPOCHS} --patience {NUM_EPOCHS} --max-failures 3"
    )
    return head.popen(
        *[sys.executable, "-m", "jobs.train", *flags.split()],
        env=cluster | START_TIMEOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_gradients_cross_the_cable_between_one_worker_a_node(outcome: Outcome) -> None:
    assert "training on 2 workers\n" in outcome.log
    assert outcome.num_workers == (1, 1), outcome.log[-3000:]
    assert outcome.default_routes == ""
    assert min(outcome.sent_bytes) > (outcome.lost_in_epoch - 1) * SENT_PER_EPOCH_BYTES


def test_the_run_goes_on_with_the_node_that_is_left(outcome: Outcome) -> None:
    assert outcome.exit_code == 0, outcome.log[-3000:]
    # The other node held decoded images.
    assert re.search(r"recover \d+ lost objects", outcome.logged)
    assert re.search(r"resuming after scratch \d+/\d+ on 1 workers\n", outcome.log)
    assert outcome.log.count(f"scratch {NUM_EPOCHS}/{NUM_EPOCHS}  loss") == 1
    assert outcome.result["test"]["num_images"] > 10
    assert outcome.result["model_uri"] == "models:/mask-detector/1"


def test_the_run_is_finished_and_has_every_epoch(outcome: Outcome) -> None:
    client = MlflowClient(outcome.store)
    run = client.get_run(outcome.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == outcome.result["test"]["accuracy"]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        points = client.get_metric_history(run.info.run_id, name)
        assert {point.step for point in points} == set(range(NUM_EPOCHS))
