"""What a worker derives from its settings, and what becomes of one whose images end early."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from mask_ray import data, tracking
from mask_ray.config import TrainSettings
from mask_ray.training import loop, workers
from mask_ray.training.devices import dtype_policy
from mask_ray.training.job import Job, check_enough, worker_config
from mask_ray.training.resources import plan_workers
from mask_ray.training.worker_config import WorkerConfig


@pytest.mark.parametrize(
    ("precision", "capability", "policy"),
    [
        ("auto", (0, 0), "float32"),
        ("auto", (7, 5), "float32"),
        ("auto", (8, 0), "mixed_bfloat16"),
        ("auto", (9, 0), "mixed_bfloat16"),
        ("auto", (12, 0), "mixed_bfloat16"),
        ("float32", (9, 0), "float32"),
        ("bfloat16", (0, 0), "mixed_bfloat16"),
        ("bfloat16", (7, 5), "mixed_bfloat16"),
    ],
)
def test_the_precision_is_the_gpu_s_unless_given(
    precision: str, capability: tuple[int, int], policy: str
) -> None:
    assert dtype_policy(precision, capability) == policy


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ({}, {}),
        ({"fusion_threshold_mb": 0}, {"HOROVOD_FUSION_THRESHOLD": "0"}),
        ({"fusion_threshold_mb": 1.5}, {"HOROVOD_FUSION_THRESHOLD": "1572864"}),
        ({"cycle_time_ms": 0.5}, {"HOROVOD_CYCLE_TIME": "0.5"}),
        ({"timeline": True}, {"HOROVOD_TIMELINE": "/tmp/timeline.json"}),
    ],
)
def test_horovod_is_told_what_is_given_and_nothing_else(
    given: dict[str, Any], environment: dict[str, str]
) -> None:
    settings = TrainSettings(data="photos", **given)
    assert loop._horovod_environment(settings, Path("/tmp/timeline.json")) == environment


def data_set(num_train: int) -> data.ImageData:
    """A data set where only the size matters."""
    counts: dict[Any, Counter[str]] = {"train": Counter(a=num_train)}
    nothing: Any = None
    return data.ImageData(
        lambda splits: nothing, ["a", "b"], data.Summary(counts, "", {}), kept=True
    )


def test_fewer_images_than_workers_are_refused() -> None:
    """A worker would have an empty shard."""
    settings = TrainSettings(data="photos", num_workers=9)
    check_enough(settings, data_set(num_train=9))
    with pytest.raises(data.DataError, match=r"at most the number of training images \(8\); got 9"):
        check_enough(settings, data_set(num_train=8))


@pytest.mark.usefixtures("ray_local", "store")
def test_workers_that_differ_in_steps_end_in_one_error(home: Path) -> None:
    """Without a check, rank 0 would wait without end for the other."""

    # Defined here, it travels by value: workers cannot import this module.
    def train_short_on_rank_1(config: WorkerConfig) -> None:
        from itertools import islice

        from mask_ray.training import batches, loop

        if ray.train.get_context().get_world_rank() == 1:
            whole = batches.ImageBatches.train
            batches.ImageBatches.train = lambda *given: islice(whole(*given), 1)  # type: ignore[method-assign]
        loop.train(config)

    settings = small(num_workers=2, finetune_epochs=1)
    with pytest.raises(loop.ShardError, match=r"of worker 1 ended after 1 of \d steps"):
        fit(settings, home, loop=train_short_on_rank_1)


@pytest.mark.usefixtures("ray_local", "store")
def test_every_epoch_has_a_checkpoint_if_none_need_wait(home: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"

    # Defined here, it travels by value: the controller cannot import this module.
    class CountReports(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            with reports.open("a") as file:
                file.write(f"{metrics[0].get('epoch')} {checkpoint is not None}\n")

    settings = small(num_workers=1, finetune_epochs=3, checkpoint_every_s=0)
    fit(settings, home, callbacks=[CountReports()])
    lines = reports.read_text().splitlines()
    assert lines == ["1 True", "2 True", "3 True", "3 True"]


@pytest.mark.usefixtures("ray_local", "store")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_training_ends_at_the_first_loss_that_is_not_finite(home: Path, num_workers: int) -> None:
    """All workers end at once, without a restart, though one alone had the bad batch."""

    # Defined here, it travels by value: workers cannot import this module.
    def train_on_a_bad_batch(config: WorkerConfig) -> None:
        from mask_ray.training import loop

        patched: Any = loop
        if ray.train.get_context().get_world_rank() == 0:
            compiled_steps = patched.compiled_steps

            def with_bad_weights(model: Any) -> Any:
                train_step, test_step = compiled_steps(model)
                calls: list[None] = []

                def step(*batch: Any) -> Any:
                    calls.append(None)
                    if len(calls) == 2:
                        bad = [weight * float("nan") for weight in model.get_weights()]
                        model.set_weights(bad)
                    return train_step(*batch)

                return step, test_step

            patched.compiled_steps = with_bad_weights
        loop.train(config)

    settings = small(num_workers=num_workers, finetune_epochs=2)
    with pytest.raises(loop.DivergedError, match=r"not finite .* at step 2 of \d of epoch 1"):
        fit(settings, home, loop=train_on_a_bad_batch)


def test_workers_get_the_weights_of_all_training_images(home: Path) -> None:
    counts: dict[Any, Counter[str]] = {"train": Counter(a=30, b=10)}
    nothing: Any = None
    images = data.ImageData(
        lambda splits: nothing, ["a", "b"], data.Summary(counts, "", {}), kept=True
    )
    run: Any = SimpleNamespace(run_id="r")
    job = Job(run, nothing, images, {}, None)
    given = TrainSettings(data="photos", class_weights="balanced", num_workers=2)
    assert worker_config(given, job, home).class_weights == pytest.approx((2 / 3, 2))
    assert worker_config(TrainSettings(data="photos"), job, home).class_weights is None


def small(**given: Any) -> TrainSettings:
    model = {"image_size": 96, "alpha": 0.35, "backbone_weights": "none"}
    return TrainSettings(data="synthetic:80", batch_size=16, **model, **given)


def fit(settings: TrainSettings, home: Path, **trainer: Any) -> None:
    plan = plan_workers(settings)
    images = data.load(settings, settings.image_size, task_cpus=plan.task_cpus)
    splits = {name: images.split(name) for name in data.SPLITS}
    with tracking.start_run("test", {}) as run:
        job = Job(run, plan, images, splits, None)
        config = worker_config(settings, job, home / "train")
        workers.trainer(plan, config, splits, **trainer).fit()
