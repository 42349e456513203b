"""Set up the Horovod workers of a run: their settings, images and checkpoints.

Imports little, since each trial of a search starts its workers from a process of its own.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray.train
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from mask_ray import ray_internals
from mask_ray.config import SplitName, TrainSettings
from mask_ray.horovod import HorovodTrainer
from mask_ray.training.batches import augmented
from mask_ray.training.resources import Plan
from mask_ray.training.schedule import phases_of
from mask_ray.training.shared_state import start_shared_state, watch_of
from mask_ray.training.worker_config import WorkerConfig


def needs_features(settings: TrainSettings) -> bool:
    """Return whether the head is trained alone, on features."""
    return "head" in _phase_names(settings)


def _phase_names(settings: TrainSettings) -> set[str]:
    return {phase.name for phase in phases_of(settings)}


def trainer(
    plan: Plan,
    config: WorkerConfig,
    splits: Mapping[SplitName, Dataset],
    callbacks: Sequence[Any] = (),
    loop: Callable[[WorkerConfig], None] | None = None,
) -> HorovodTrainer:
    """Return the trainer whose `fit` runs the workers.

    Args:
        plan: Number and resources of the workers, and of the tasks that feed them.
        config: What each worker gets; its `shared` is set here.
        splits: Decoded images.
        callbacks: Callbacks of Ray Train.
        loop: Function that each worker calls (default: `loop.train`).
    """
    # Ray Train polls its workers every 2 s by default, and a run ends with a poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

    settings = config.settings
    shared = start_shared_state()
    datasets = _image_datasets(settings, splits, plan.task_cpus, shared)
    own: dict[str, Any] = {}
    if plan.group is not None:  # Ray Train V1 reserves and watches by itself
        own = {"placement": (plan.group, plan.first_bundle), "while_running": watch_of(shared)}
    return HorovodTrainer(
        _worker(loop),
        train_loop_config={"worker": replace(config, shared=shared)},
        scaling_config=plan.scaling,
        run_config=ray.train.RunConfig(
            name=config.run_id,
            storage_path=str(config.storage),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[*callbacks],
        ),
        datasets=datasets,
        dataset_config=ShardConfig(),
        **own,
    )


def _worker(
    loop: Callable[[WorkerConfig], None] | None,
) -> Callable[[dict[str, WorkerConfig]], None]:
    """Return the function that each worker runs."""

    # A local function travels by value, so workers need not import this module.
    def train_worker(received: dict[str, WorkerConfig]) -> None:
        if loop is not None:
            loop(received["worker"])
            return

        # The imports take seconds, and on a busy machine a minute.
        received["worker"].shared.beat.remote("the imports of the workers")
        # See docs/decisions/no-scikit-learn-in-workers.md: a third of the start.
        hidden = {"sklearn", "matplotlib"} - sys.modules.keys()
        sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
        from mask_ray.training.loop import train

        for name in hidden:
            del sys.modules[name]

        train(received["worker"])

    return train_worker


def _image_datasets(
    settings: TrainSettings, splits: Mapping[SplitName, Dataset], task_cpus: float, shared: Any
) -> dict[str, Dataset]:
    """Return the images that stream to the workers: none if only the head is trained."""
    if _phase_names(settings) == {"head"}:
        return {}
    train = augmented(splits["train"], settings.augmentation, settings.seed, shared, task_cpus)
    return {"train": train, "val": splits["val"]}


class ShardConfig(DataConfig):
    """Shards data sets: `train` equally, all others without losing an image.

    Workers must take the same number of training steps, so Ray drops up to one training image per
    worker; a validation metric should count every image once.
    """

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Return one iterator per data set for each worker, as `ray.train.DataConfig` does."""
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            own = dataset.copy(dataset)
            own.context.execution_options = self.default_ingest_options()
            own.context.enable_progress_bars = False  # each epoch prints its own line
            # The order of files in an epoch depends on the number of executions so far. Without
            # this, computing features before would change the order.
            ray_internals.restart_executions(own)
            splits = own.streaming_split(
                world_size, equal=name == "train", locality_hints=worker_node_ids
            )
            for shard, split in zip(shards, splits, strict=True):
                shard[name] = split
        return shards
