"""What a worker derives from its settings, and when it ends a run."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from mask_ray import data
from mask_ray.config import TrainSettings
from mask_ray.models import keras_model
from mask_ray.training import loop
from mask_ray.training.devices import dtype_policy, horovod_environment
from mask_ray.training.job import Job, check_enough, worker_config
from mask_ray.training.worker_config import WorkerConfig

SMALL = TrainSettings(
    data="photos", image_size=96, alpha=0.35, backbone_weights="photos.h5", batch_size=8
)


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
    assert horovod_environment(settings, Path("/tmp/timeline.json")) == environment


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


@pytest.fixture(scope="module")
def classifier() -> Iterator[keras.Model]:
    """The model of a worker that is alone."""
    hvd.init()
    yield keras_model.build(
        num_classes=2, image_size=SMALL.image_size, alpha=SMALL.alpha, from_scratch=False
    )
    hvd.shutdown()


def features_of(num_images: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(num_images, 1280)).astype(np.float32)


def head_phase(
    folder: Path, classifier: keras.Model, features: NDArray[np.float32]
) -> loop._RunningPhase:
    """The phase of a worker that expects 32 images in 4 steps, and finds these."""
    for split in ("train", "val"):
        np.save(folder / f"{split}_features.npy", features[:, None])
        np.save(folder / f"{split}_labels.npy", np.arange(len(features)) % 2)
        np.save(folder / f"{split}_order.npy", np.arange(len(features)))
    config = WorkerConfig(
        settings=SMALL,
        class_names=["a", "b"],
        num_train=32,
        run_id="r",
        tracking_uri="",
        storage=folder,
        features=folder,
    )
    return loop._RunningPhase(config, 0, classifier)


def test_a_worker_whose_images_end_early_says_so(tmp_path: Path, classifier: keras.Model) -> None:
    """Without a check, the others would wait without end for its steps."""
    phase = head_phase(tmp_path, classifier, features_of(16))
    with pytest.raises(loop.ShardError, match="of worker 0 ended after 2 of 4 steps of epoch 1"):
        phase.train_epoch("head 1/1", 0)


def test_training_ends_at_the_first_loss_that_is_not_finite(
    tmp_path: Path, classifier: keras.Model
) -> None:
    """On all workers, if it is one's: see `TestTwoWorkers` of horovod/test_trainer.py."""
    features = features_of(32)
    features[5] = np.nan
    phase = head_phase(tmp_path, classifier, features)
    with pytest.raises(loop.DivergedError, match=r"not finite .* of 4 of epoch 1") as raised:
        phase.train_epoch("head 1/1", 0)
    assert f"at step {int(phase.trained.optimizer.iterations)} of 4" in str(raised.value)


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
