"""Go on with an earlier run: which one can be, under what settings, and by whom."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from mask_ray import tracking
from mask_ray.config import MaskRayError, TrainSettings, home

SETTINGS_FILE = "settings.json"

# What a resumed run may change: where and how it runs, not what it makes.
MAY_CHANGE = {
    "num_workers",
    "min_workers",
    "use_gpu",
    "cpus_per_worker",
    "precision",
    "gradient_compression",
    "fusion_threshold_mb",
    "cycle_time_ms",
    "timeline",
    "system_metrics",
    "tensorboard",
    "feature_cache",
    "max_failures",
    "quantize",
    "data_report",
    "robustness_images",
    "register_as",
    "promote",
    "promotion_metric",
    "promotion_margin",
    "min_recall",
    "resume",
    "from_run",
}


class ResumeError(MaskRayError):
    """The run cannot be gone on with; the message says why."""


def stored_settings(run_id: str) -> dict[str, Any]:
    """The settings of an earlier run, by field.

    Raises:
        tracking.TrackingError: there is no such run, or no settings in it.
    """
    settings: dict[str, Any] = tracking.Run(run_id).load_json(SETTINGS_FILE)
    return settings | {"resume": None, "from_run": None}


def check_resumable(settings: TrainSettings) -> None:
    """Check that the run to resume is unfinished, and that its settings are kept.

    Raises:
        tracking.TrackingError: no such run exists.
        ResumeError: the run is finished, or a setting differs that must not.
    """
    if settings.resume is None:
        return
    run = tracking.Run(settings.resume)
    if run.status() == "FINISHED":
        raise ResumeError(f"run {run.run_id} is finished; there is nothing to resume")
    if not run.has_file(SETTINGS_FILE):
        return  # it was cut off before it had begun
    stored = run.load_json(SETTINGS_FILE)
    for name, value in settings.model_dump(mode="json").items():
        if name not in MAY_CHANGE and value != stored.get(name):
            raise ResumeError(
                f"{name} must be that of the resumed run, {stored.get(name)}; got {value}"
            )


@contextmanager
def locked(tracked: tracking.Run) -> Iterator[None]:
    """Keep a second driver out of the run's checkpoints."""
    path = home() / "train" / f"{tracked.run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise ResumeError(f"run {tracked.run_id} is going on in another process") from error
    path.unlink(missing_ok=True)
