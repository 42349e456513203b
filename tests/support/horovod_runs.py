"""Runs of small functions on Horovod workers, and what these report."""

import tempfile
from pathlib import Path
from typing import Any

import ray.train

from mask_ray.horovod.trainer import HorovodConfig, HorovodTrainer


def reported_count() -> int:
    """The count in the checkpoint that a worker starts from; 0 without one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return int(Path(folder, "count").read_text())


def report(metrics: dict[str, Any], files: dict[str, str] | None = None) -> None:
    """From every rank, with a checkpoint from rank 0: Ray Train keeps no metrics without one."""
    import horovod.tensorflow as hvd

    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text)
        saved = ray.train.Checkpoint.from_directory(folder) if hvd.rank() == 0 else None
        ray.train.report(metrics, checkpoint=saved)


def fit(
    loop: Any,
    folder: Path,
    num_workers: int | tuple[int, int] = 2,
    cpus: float = 0.5,
    **kwargs: Any,
) -> Any:
    return HorovodTrainer(
        loop,
        horovod_config=HorovodConfig(timeout_s=60),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, resources_per_worker={"CPU": cpus}
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=kwargs.pop("max_failures", 0)),
        ),
        **kwargs,
    ).fit()
