"""The project's training loop in a HorovodTrainer worker, taking turns with the plain loop.

Both are alive at once and share one core: before each epoch of the one, the other does one. What
else the machine does then falls on both alike.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from mask_ray.training import loop
from mask_ray.training.worker_config import WorkerConfig

Peer = subprocess.Popen[str]


def train(config: WorkerConfig, turns: dict[str, Any]) -> None:
    """Run `mask_ray.training.loop.train` on one core; see the module.

    Args:
        config: Of the only worker.
        turns: `core` (or None), `driver_pid`, `plain` (command of the plain loop), `record` (path
            of a file that gets a line of JSON for each epoch).
    """
    if turns["core"] is not None:
        _pin(turns["core"])
    with subprocess.Popen(
        turns["plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        loop.train(config, around_epoch=partial(_recorded_turn, peer, turns, config.num_train))
        assert peer.stdin is not None
        peer.stdin.close()


def _pin(core: int) -> None:
    """All threads of this process, and all that it starts."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def _recorded_turn(peer: Peer, turns: dict[str, Any], num_images: int) -> Iterator[None]:
    """Wait for an epoch of the peer, then record the epoch of the loop that runs within."""
    plain = _ask(peer)
    cpu_before, own_before = _cpu_of_others(turns["driver_pid"], peer), time.process_time()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    cpu, own = _cpu_of_others(turns["driver_pid"], peer), time.process_time() - own_before
    line = {
        "plain": plain,
        "ray": num_images / seconds,
        "own_cpu_s": own,
        "others_cpu_s": sum(cpu[pid] - cpu_before.get(pid, 0.0) for pid in cpu),
        "num_images": num_images,
    }
    with turns["record"].open("a") as file:
        file.write(json.dumps(line) + "\n")


def _ask(peer: Peer) -> float:
    """Have the peer train one epoch; images a second."""
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write("\n")
    peer.stdin.flush()
    return float(json.loads(peer.stdout.readline())["images_per_second"])


def _cpu_of_others(driver_pid: int, peer: Peer) -> dict[int, float]:
    """CPU seconds by process of this Ray, without this worker and the peer."""
    seconds = {}
    for process in psutil.Process(driver_pid).children(recursive=True):
        if process.pid not in (os.getpid(), peer.pid):
            try:
                times = process.cpu_times()
            except psutil.Error:  # gone in the meantime
                continue
            seconds[process.pid] = times.user + times.system
    return seconds
