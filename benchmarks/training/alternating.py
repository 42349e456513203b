"""The driver of trainer_overhead: a HorovodTrainer whose worker takes turns with its peer."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mask_ray import data, tracking
from mask_ray.config import TrainSettings, home
from mask_ray.models import pretrained
from mask_ray.training import workers
from mask_ray.training.job import Job, Pretrained, worker_config
from mask_ray.training.resources import plan_workers
from mask_ray.training.worker_config import WorkerConfig

_OBJECT_STORE_BYTES = 2**30


@dataclass(frozen=True)
class Pairs:
    """Neighbouring epochs of the two loops.

    Args:
        plain: Images a second in Keras alone.
        ray: Images a second in the HorovodTrainer worker.
        own_cpu_s: CPU seconds of the worker for 1,000 images.
        others_cpu_s: Those of all other processes of this Ray meanwhile.
    """

    plain: list[float]
    ray: list[float]
    own_cpu_s: float
    others_cpu_s: float

    @property
    def ratios(self) -> list[float]:
        """Of the worker to its peer."""
        return [ray / plain for ray, plain in zip(self.ray, self.plain, strict=True)]


@contextmanager
def own_ray() -> Iterator[None]:
    """A Ray of this process, beside any other on the machine."""
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def compare(training: TrainSettings, core: int | None) -> Pairs:
    """Train, with the peer taking turns, and read what they recorded.

    Args:
        training: Of one worker, from ImageNet weights, without epochs of the head. The first
            epoch, which compiles, is not counted.
        core: That both keep to; None where the system cannot.
    """
    weights_file = pretrained.find(training.backbone_weights, training.alpha).resolve()
    plan = plan_workers(training)
    images = data.load(training, training.image_size, task_cpus=plan.task_cpus)
    record = home() / f"epochs_{training.augmentation:g}.jsonl"
    turns = {
        "core": core,
        "driver_pid": os.getpid(),
        "plain": _plain_command(images, training, weights_file),
        "record": record,
    }
    backbone = pretrained.read(str(weights_file), training.alpha)
    initial = Pretrained(ray.put(backbone), backbone=b"")
    splits = {name: images.split(name) for name in data.SPLITS}
    with tracking.start_run("trainer_overhead", {}) as run:
        _fit(Job(run, plan, images, splits, initial), training, turns)
    return _pairs([json.loads(line) for line in record.read_text().splitlines()[1:]])


def _plain_command(
    images: data.ImageData, training: TrainSettings, weights_file: Path
) -> list[str]:
    """The peer's, with the same decoded images in a file for it."""
    arrays = home() / "train.npz"
    batches = list(images.split("train").iter_batches())
    columns = {name: np.concatenate([b[name] for b in batches]) for name in ("image", "label")}
    np.savez(arrays, **columns)
    flags = {"arrays": arrays, "weights": weights_file, "finetune-from": training.finetune_from}
    flags |= {"batch-size": training.batch_size}
    plain = [sys.executable, "-m", "benchmarks.training.plain_loop"]
    return plain + [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def _fit(job: Job, training: TrainSettings, turns: dict[str, Any]) -> None:
    """As a run does, with the loop that takes turns, on one thread."""
    config = worker_config(training, job, home() / "train")
    config = replace(config, num_threads=1, export=False)
    train_worker = partial(_train_worker, turns)
    workers.trainer(job.plan, config, job.splits, loop=train_worker).fit()


def _train_worker(turns: dict[str, Any], config: WorkerConfig) -> None:
    """Imports in the worker, not in the driver, what brings TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from benchmarks.training import turns as taking_turns

    taking_turns.train(config, turns)


def _pairs(epochs: list[dict[str, float]]) -> Pairs:
    num_thousands = sum(epoch["num_images"] for epoch in epochs) / 1000
    return Pairs(
        plain=[epoch["plain"] for epoch in epochs],
        ray=[epoch["ray"] for epoch in epochs],
        own_cpu_s=sum(epoch["own_cpu_s"] for epoch in epochs) / num_thousands,
        others_cpu_s=sum(epoch["others_cpu_s"] for epoch in epochs) / num_thousands,
    )
