"""Whole jobs that were started as commands: each costs a process that imports everything."""

# Of `make test`. What needs no process of its own runs by `ray_jobs.run_here`.
MOST = 15

started: list[str] = []
is_limited = True


def count(command: str) -> None:
    """Count a command that is about to start.

    Raises:
        AssertionError: it is one more than `make test` may start.
    """
    started.append(command)
    if is_limited:
        assert len(started) <= MOST, f"more than {MOST} job commands: {started}"
