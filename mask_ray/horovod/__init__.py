"""Horovod on Ray Train V2 and Keras 3.

`HorovodTrainer` and `HorovodConfig` have the signatures of `ray.train.horovod`, whose own trainer
does not run on Ray Train V2. With `RAY_TRAIN_V2_ENABLED=0` they are Ray's own classes.
"""

from mask_ray import ray_internals

if ray_internals.is_train_v2():
    from mask_ray.horovod.trainer import HorovodConfig, HorovodTrainer
else:
    from ray.train.horovod import HorovodConfig, HorovodTrainer  # type: ignore[assignment]

__all__ = ["HorovodConfig", "HorovodTrainer"]
