"""The pulse of a run: its workers say what they have done, and the driver sees when they stop."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.stalls import Watch

# A worker says at most so often that it does something.
_BEAT_EVERY_S = 2.0


class Pulse:
    """The last sign of life of a run's workers, as an actor."""

    def __init__(self) -> None:
        self._stage, self._at = "the start of the workers", time.monotonic()

    def beat(self, stage: str) -> None:
        """Note that a stage has just made progress."""
        self._stage, self._at = stage, time.monotonic()

    def read(self) -> tuple[str, float]:
        """Return the stage and the seconds since its last progress."""
        return self._stage, time.monotonic() - self._at


def start_pulse() -> Any:
    """Start a `Pulse` on this process's node, since other nodes may be lost."""
    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Pulse).options(num_cpus=0, scheduling_strategy=strategy).remote()


def watch_of(pulse: Any) -> Callable[[], None]:
    """Return a function that raises `StalledError` when the pulse has stopped for too long."""
    watch = Watch()
    return lambda: watch.look(*ray.get(pulse.read.remote()))


class Beats:
    """Sends the beats of one worker.

    Args:
        pulse: The actor; None to send none, as from all workers but one.
    """

    def __init__(self, pulse: Any) -> None:
        self._pulse = pulse
        self._sent = -_BEAT_EVERY_S

    def beat(self, stage: str) -> None:
        """Say that a stage has made progress; it does not wait."""
        now = time.monotonic()
        if self._pulse is not None and now - self._sent >= _BEAT_EVERY_S:
            self._sent = now
            self._pulse.beat.remote(stage)
