"""The project's training loop in a HorovodTrainer worker, taking turns with the plain loop.

Both are alive at once and share one core: before each epoch of the one, the other does one. What
else the machine does then falls on both alike.
"""

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray.train

from mask_ray.training import loop
from mask_ray.training.schedule import Position


def train(config: dict[str, Any]) -> None:
    """Run `mask_ray.training.loop.train` on one core; see the module.

    Args:
        config: Of the worker, and `turns`: `core` (or None), `driver_pid`, `plain` (command of
            the plain loop), `record` (path of a file that gets a line of JSON for each epoch).
    """
    turns = config["turns"]
    if turns["core"] is not None:
        _pin(turns["core"])
    with subprocess.Popen(
        turns["plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        loop._Session = partial(  # type: ignore[misc, assignment]
            _TurnTaking, peer, turns["driver_pid"], turns["record"]
        )
        loop.train(config)
        assert peer.stdin is not None
        peer.stdin.close()


def _pin(core: int) -> None:
    """All threads of this process, and all that it starts."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


class _TurnTaking(loop._Session):
    """Its epochs wait for one of the peer, and are recorded; nothing is exported at the end."""

    def __init__(
        self, peer: "subprocess.Popen[str]", driver_pid: int, record: Path, *session: Any
    ) -> None:
        super().__init__(*session)
        self._peer, self._driver_pid, self._record = peer, driver_pid, record

    def _train_epoch(self, title: str, epoch: int) -> dict[str, float]:
        plain = self._ask_peer()
        cpu_before, own_before = self._cpu_of_others(), time.process_time()
        started = time.perf_counter()
        metrics = super()._train_epoch(title, epoch)
        seconds = time.perf_counter() - started
        cpu, own = self._cpu_of_others(), time.process_time() - own_before
        line = {
            "plain": plain,
            "ray": self._num_train / seconds,
            "own_cpu_s": own,
            "others_cpu_s": sum(cpu[pid] - cpu_before.get(pid, 0.0) for pid in cpu),
            "num_images": self._num_train,
        }
        with self._record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return metrics

    def _ask_peer(self) -> float:
        assert self._peer.stdin is not None and self._peer.stdout is not None
        self._peer.stdin.write("\n")
        self._peer.stdin.flush()
        return float(json.loads(self._peer.stdout.readline())["images_per_second"])

    def _cpu_of_others(self) -> dict[int, float]:
        """CPU seconds by process of this Ray, but for this worker and the peer."""
        seconds = {}
        for process in psutil.Process(self._driver_pid).children(recursive=True):
            if process.pid not in (os.getpid(), self._peer.pid):
                try:
                    times = process.cpu_times()
                except psutil.Error:  # gone in the meantime
                    continue
                seconds[process.pid] = times.user + times.system
        return seconds

    def _finish(self, position: Position) -> None:
        ray.train.report({})
