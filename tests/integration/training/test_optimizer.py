"""The fused optimizer against Keras's own."""

from collections.abc import Iterator

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest

from mask_ray.config import TrainSettings
from mask_ray.training.optimizer import FusedAdam, adam_of
from mask_ray.training.schedule import phases_of
from mask_ray.training.steps import compiled_steps

ROWS = np.random.default_rng(0).normal(size=(7, 8, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, (7, 8))


@pytest.fixture(scope="module", autouse=True)
def horovod() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def trained(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Train a small network for seven steps, then return it."""
    keras.utils.set_random_seed(0)
    rows = keras.layers.Input((5,))
    hidden = keras.layers.Dense(6, "relu")(rows)
    model = keras.Model(rows, keras.layers.Dense(3, "softmax", dtype="float32")(hidden))
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    train_step, _ = compiled_steps(model)
    for batch, labels in zip(ROWS, LABELS, strict=True):
        train_step(batch, labels)
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("accumulate", [None, 3])
def test_weights_and_state_are_those_of_keras_s_adam(policy: str, accumulate: int | None) -> None:
    keras.config.set_dtype_policy(policy)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 5, warmup_target=0.1, warmup_steps=2)
    kinds = (FusedAdam, keras.optimizers.Adam)
    models = [trained(kind(schedule, gradient_accumulation_steps=accumulate)) for kind in kinds]
    own, keras_s = ([*model.weights, *model.optimizer.variables] for model in models)
    for value, expected in zip(own, keras_s, strict=True):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_steps_are_accumulated_as_the_settings_say() -> None:
    settings = TrainSettings(data="photos", backbone_weights="none", accumulate_steps=2)
    adam = adam_of(phases_of(settings)[0], settings, num_steps=4, num_workers=1)
    assert adam.gradient_accumulation_steps == 2
