"""Resume an earlier run: check that it can be, with which settings, and by one driver only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from mask_ray import ray_internals, tracking
from mask_ray.config import MaskRayError, TrainSettings, Uri, changeable_fields, home
from mask_ray.files import make_private
from mask_ray.stalls import StalledError

SETTINGS_FILE = "settings.json"


class ResumeError(MaskRayError):
    """The run cannot be resumed; the message says why."""


def stored_settings(run_id: str) -> dict[str, Any]:
    """Return the settings of an earlier run, by field.

    Raises:
        tracking.TrackingError: the run or its settings do not exist.
    """
    settings: dict[str, Any] = tracking.Run(run_id).load_json(SETTINGS_FILE)
    return settings | {"resume": None, "from_run": None}


def without_secrets(stored: dict[str, Any]) -> dict[str, Any]:
    """Clean the URIs in settings that an earlier version stored."""
    return {
        name: str(Uri(value)) if isinstance(value, str) else value for name, value in stored.items()
    }


def check_resumable(settings: TrainSettings) -> None:
    """Check that the run to resume is unfinished, and that only marked settings change.

    Settings marked with `mask_ray.config.MayChange` may differ from those of the run.

    Raises:
        tracking.TrackingError: no such run exists.
        ResumeError: the run is finished, or another setting differs.
    """
    if settings.resume is None:
        return
    run = tracking.Run(settings.resume)
    if run.status() == "FINISHED":
        raise ResumeError(f"run {run.run_id} is finished; there is nothing to resume")
    if not run.has_file(SETTINGS_FILE):
        return  # it was interrupted before it had stored them
    stored = without_secrets(run.load_json(SETTINGS_FILE))
    may_change = changeable_fields(type(settings))
    for name, value in settings.model_dump(mode="json").items():
        # A setting that is newer than the run had the effect of its default.
        before = stored.get(name, type(settings).model_fields[name].default)
        if name not in may_change and value != before:
            raise ResumeError(f"{name} must stay as in the resumed run, {before}; got {value}")


@contextmanager
def locked(tracked: tracking.Run) -> Iterator[None]:
    """Keep other drivers from running the same run.

    Raises:
        ResumeError: another process runs it.
    """
    path = home() / "train" / f"{tracked.run_id}.lock"
    make_private(path.parent)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise ResumeError(f"run {tracked.run_id} is active in another process") from error
    path.unlink(missing_ok=True)


def command(module: str, run_id: str) -> str:
    """Return the command that resumes a run, submitted again if this job was."""
    own = f"python -m {module} --resume {run_id}"
    if ray_internals.submission_id() is None:
        return own
    return f"ray job submit --working-dir . -- {own}"


@contextmanager
def saying_how(module: str, tracked: tracking.Run) -> Iterator[None]:
    """Add the command that resumes the run to Ctrl-C, and to the error of a run that stands still.

    Args:
        module: Job that resumes it.
        tracked: The run, with its settings stored.
    """
    how = f"resume with {command(module, tracked.run_id)}"
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"run {tracked.run_id} is KILLED; {how}") from stop
    except StalledError as error:
        raise StalledError(f"{error}. To go on, {how}") from error
