"""Say that a stage makes no progress, and end it when that lasts.

What a run needs is reserved, so it should never stand still; but a node may be lost, a store may
hang, and another program may take the machine.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

from mask_ray.config import MaskRayError
from mask_ray.progress import say
from mask_ray.ray_internals import cpus_in_words

T = TypeVar("T")

SAY_AFTER_S = 50.0
END_AFTER_S = 600.0
_LOOK_EVERY_S = 1.0


class StalledError(MaskRayError):
    """A stage made no progress for too long; the message says which, and what is free."""


class Watch:
    """Says every minute that there is no progress, and in the end raises.

    Args:
        end_after_s: Longest time without progress.
        cluster: Returns words on what is free, for the messages.
    """

    def __init__(
        self, end_after_s: float = END_AFTER_S, cluster: Callable[[], str] = cpus_in_words
    ) -> None:
        self._end_after_s = end_after_s
        self._cluster = cluster
        self._said_s = 0.0

    def look(self, stage: str, silent_s: float) -> None:
        """Check how long a stage has been without progress.

        Raises:
            StalledError: too long.
        """
        if silent_s < SAY_AFTER_S:
            self._said_s = 0.0
            return
        if silent_s >= self._end_after_s:
            raise StalledError(
                f"{stage} made no progress for {silent_s:.0f} s, so it was ended; the cluster has "
                f"{self._cluster()}. `ray status` and `ray job list` show what holds the others"
            )
        if silent_s - self._said_s >= SAY_AFTER_S:
            self._said_s = silent_s
            say(f"{stage}: no progress for {silent_s:.0f} s; the cluster has {self._cluster()}")


def watched(items: Iterable[T], stage: str, watch: Watch | None = None) -> Iterator[T]:
    """Yield the items, and `look` while the next one does not come.

    Raises:
        StalledError: the next one does not come for too long.
    """
    watcher = _Watcher(stage, watch or Watch())
    try:
        for item in items:
            watcher.is_waiting = False
            yield item
            watcher.wait()
    except KeyboardInterrupt:
        if watcher.error is None:
            raise
        raise watcher.error from None
    finally:
        watcher.stop()


class _Watcher:
    """A thread that looks, and interrupts the main thread when the watch raises.

    In other threads than the main one, which no signal reaches, it only says what it sees.
    """

    def __init__(self, stage: str, watch: Watch) -> None:
        self._stage, self._watch = stage, watch
        self._stopped = threading.Event()
        self.error: StalledError | None = None
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            # A process in the background, as of `nohup ... &`, ignores the signal otherwise.
            self._handler_before = signal.signal(signal.SIGINT, self._interrupt)
        self.wait()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self) -> None:
        """Count the seconds from now on."""
        self._since = time.monotonic()
        self.is_waiting = True

    def stop(self) -> None:
        self._stopped.set()
        if self._is_main:
            signal.signal(signal.SIGINT, self._handler_before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.error is None and callable(self._handler_before):
            self._handler_before(number, frame)
        elif self.error is not None or self._handler_before != signal.SIG_IGN:
            raise KeyboardInterrupt

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            if self.is_waiting:
                try:
                    self._watch.look(self._stage, time.monotonic() - self._since)
                except StalledError as error:
                    if self._is_main:
                        self.error = error
                        # Nothing else gets a thread out of the wait for Ray.
                        os.kill(os.getpid(), signal.SIGINT)
                    return
