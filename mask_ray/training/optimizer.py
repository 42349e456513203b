"""The optimizer of a phase: Adam on its learning rates, in few operations."""

from typing import Any

import keras
import tensorflow as tf

from mask_ray.config import TrainSettings
from mask_ray.training.schedule import Phase, schedule_of


class FusedAdam(keras.optimizers.Adam):
    """Keras's Adam with one TensorFlow operation a variable, where Keras has about 25.

    For a network of many small variables that halves what TensorFlow has to trace and optimize
    before the first step. The formula is Keras's: Kingma and Ba 2014, the last paragraph of
    section 2, https://arxiv.org/abs/1412.6980.
    """

    def _backend_update_step(self, grads: list[Any], variables: list[Any], rate: Any) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        shared = {
            "lr": tf.cast(rate, tf.float32),
            "beta1": tf.constant(self.beta_1, tf.float32),
            "beta2": tf.constant(self.beta_2, tf.float32),
            "epsilon": tf.constant(self.epsilon, tf.float32),
            "beta1_power": self.beta_1**step,
            "beta2_power": self.beta_2**step,
        }
        for grad, variable in zip(grads, variables, strict=True):
            index = self._get_variable_index(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                grad=grad,
                **shared,
            )


def adam_of(phase: Phase, settings: TrainSettings, num_steps: int, num_workers: int) -> FusedAdam:
    """Return Adam on the learning rates of a phase.

    Args:
        phase: The phase to train.
        settings: Settings of the run.
        num_steps: Steps an epoch.
        num_workers: Workers whose batches are one step together.
    """
    rate = schedule_of(phase, settings, steps_per_epoch=num_steps, num_workers=num_workers)
    accumulate = settings.accumulate_steps
    return FusedAdam(
        keras.optimizers.schedules.CosineDecay(
            rate.start if rate.warmup_steps else rate.peak,
            rate.decay_steps,
            warmup_target=rate.peak if rate.warmup_steps else None,
            warmup_steps=rate.warmup_steps,
        ),
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
    )
