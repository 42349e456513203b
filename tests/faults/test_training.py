"""Runs that lose a worker, their disk or their tracking server, or are stopped, and go on."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import mlflow
import pytest

from mask_ray.processes import free_port
from tests.support.polling import wait_until
from tests.support.project import ROOT
from tests.support.ray_jobs import SMALL, Job, kill_one, run_job


@pytest.fixture
def home(module_home: Path) -> Path:
    return module_home


def epochs_logged(run_id: str) -> list[int]:
    points = mlflow.MlflowClient().get_metric_history(run_id, "val_loss")
    return sorted({point.step for point in points})


def status(run_id: str) -> str:
    return str(mlflow.get_run(run_id).info.status)


@pytest.fixture
def _local_store(home: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")


@pytest.mark.usefixtures("_local_store")
def test_a_worker_killed_in_any_phase_costs_no_quality(
    cluster: dict[str, str], shared: Path
) -> None:
    (weights,) = (shared / "weights").glob("*.h5")
    flags = "--num-workers 2 --image-size 96 --head-epochs 40 --patience 40 --finetune-epochs 2"
    job = run_job(
        "jobs.train",
        *("--data", str(shared / "data" / "observations"), "--backbone-weights", str(weights)),
        *flags.split(),
        env=cluster,
        events={
            " images: train ": lambda _: kill_when_there("MapWorker"),
            "head 2/40  loss": lambda _: kill_one("RayTrainWorker"),
            "finetune 1/2  loss": lambda _: kill_one("RayTrainWorker"),
        },
    )
    assert job.result["test"]["accuracy"] >= 0.97
    # The second where the last epoch was still reported.
    assert re.search(r"resuming after (the end of head|finetune 1/2) on 2 workers", job.log)
    assert status(job.run_id) == "FINISHED"
    assert epochs_logged(job.run_id) == list(range(42))
    assert len(mlflow.search_runs(search_all_experiments=True)) == 1


def kill_when_there(name: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            return kill_one(name)
        except ValueError:  # none yet
            continue
    raise AssertionError(f"no process of Ray's was called {name}")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("_local_store")
def test_a_stopped_run_and_one_whose_disk_is_full_are_resumed(
    cluster: dict[str, str], home: Path
) -> None:
    flags = ["--data", "synthetic:300", "--finetune-epochs", "8", *SMALL]
    with small_disk(home / "train", megabytes=60):
        stopped = run_job(
            "jobs.train",
            *flags,
            env=cluster,
            events={"scratch 4/8  loss": lambda process: process.send_signal(signal.SIGTERM)},
        )
        run_id = stopped.run_id
        how = f"run {run_id} is KILLED; resume with python -m jobs.train --resume {run_id}"
        assert (stopped.returncode, stopped.errors) == (130, [f"error: stopped: {how}"])
        assert status(run_id) == "KILLED"

        filler = home / "train" / "filler"
        fill(filler)
        full = run_job("jobs.train", "--resume", run_id, env=cluster)
        assert full.returncode == 1
        assert "the checkpoint cannot be written" in full.errors[0], full.log[-3000:]
        assert "No space left" in full.errors[0] and f"--resume {run_id}" in full.errors[0]
        assert status(run_id) == "FAILED"
        filler.unlink()

        resumed = run_job("jobs.train", "--resume", run_id, env=cluster)
        assert resumed.result["run_id"] == run_id
        assert not (ROOT / "mlruns").exists(), "a model was logged in the current folder"
        assert went_on_after(full) >= 1 and went_on_after(resumed) >= 1
        assert status(run_id) == "FINISHED"
        assert epochs_logged(run_id) == list(range(8))

    again = run_job("jobs.train", "--resume", run_id, env=cluster)
    assert again.errors == [f"error: run {run_id} is finished; there is nothing to resume"]


def fill(path: Path) -> None:
    with path.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(2**16))


def went_on_after(job: Job) -> int:
    (line,) = (line for line in job.log.splitlines() if "resuming after scratch" in line)
    return int(line.partition("after scratch ")[2].partition("/")[0])


def test_a_tracking_server_that_goes_away_costs_one_line_and_no_checkpoint(
    cluster: dict[str, str], home: Path, tmp_path: Path
) -> None:
    port = free_port()
    with tracking_server(port, tmp_path) as server:
        env = cluster | {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        }
        job = run_job(
            "jobs.train",
            *("--data", "synthetic:300", "--finetune-epochs", "30", *SMALL),
            env=env,
            events={"scratch 7/30  loss": lambda _: os.killpg(server.pid, signal.SIGKILL)},
        )
    assert job.returncode == 1
    assert len(job.errors) == 1 and f"the tracking store http://127.0.0.1:{port}" in job.errors[0]
    assert list((home / "train" / job.run_id).glob("checkpoint_*/state.json"))


@contextmanager
def tracking_server(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    with subprocess.Popen([*command, *store], cwd=folder, start_new_session=True) as server:
        try:
            wait_until(lambda: is_up(port) or server.poll() is not None, "the tracking server")
            assert server.poll() is None
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).is_success
    except httpx.TransportError:
        return False


def test_the_same_loop_runs_on_ray_s_own_trainer(home: Path) -> None:
    """Ray Train V1, which Ray still offers; `HorovodTrainer` is Ray's own there."""
    own = os.environ | {"RAY_ADDRESS": "local", "RAY_TRAIN_V2_ENABLED": "0"}
    flags = "--data synthetic:120 --num-workers 2 --finetune-epochs 1 --register-as v1"
    done = run_job("jobs.train", *flags.split(), *SMALL, env=own)
    assert "training on 2 workers" in done.log
    assert done.result["model_uri"] == "models:/v1/1"
