"""What the processes of a run share while it trains: the epoch, and the last sign of life.

Its workers say what they have done, and the driver sees when they stop.
"""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.stalls import Watch

# Least time between two signs of life of a worker.
_BEAT_EVERY_S = 2.0


class SharedState:
    """The epoch that workers are in, and their last sign of life, as one actor."""

    def __init__(self) -> None:
        self._epoch = 0
        self._stage, self._at = "the start of the workers", time.monotonic()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the images that are requested from now on."""
        self._epoch = epoch

    def get_epoch(self) -> int:
        """Return the epoch of the images that are now being made."""
        return self._epoch

    def beat(self, stage: str) -> None:
        """Note that a stage has just made progress."""
        self._stage, self._at = stage, time.monotonic()

    def last_beat(self) -> tuple[str, float]:
        """Return the stage and the seconds since its last progress."""
        return self._stage, time.monotonic() - self._at


def start_shared_state() -> Any:
    """Start a `SharedState` on this process's node, since other nodes may be lost."""
    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(SharedState).options(num_cpus=0, scheduling_strategy=strategy).remote()


def watch_of(shared: Any) -> Callable[[], None]:
    """Return a function that raises `StalledError` when no worker has beaten for too long."""
    watch = Watch()
    return lambda: watch.look(*ray.get(shared.last_beat.remote()))


class Beats:
    """Sends the beats of one worker.

    Args:
        shared: The actor; None to send none, as from all workers but one.
    """

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self._sent = -_BEAT_EVERY_S

    def beat(self, stage: str) -> None:
        """Say that a stage has made progress; it does not wait."""
        now = time.monotonic()
        if self._shared is not None and now - self._sent >= _BEAT_EVERY_S:
            self._sent = now
            self._shared.beat.remote(stage)
