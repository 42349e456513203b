"""Ctrl-C also for tests that were started in the background.

A shell without job control starts background commands with SIGINT ignored, and children inherit
that.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def accept_sigint() -> None:
    """Stop ignoring SIGINT in this process. As `preexec_fn`: in a child, before its program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def accepting_sigint() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt in this process, for a while."""
    before = signal.getsignal(signal.SIGINT)
    accept_sigint()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
