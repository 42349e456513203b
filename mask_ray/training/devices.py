"""What a worker computes on and in: its GPU, threads, precision, and the settings of Horovod."""

import os
from pathlib import Path

import keras
import tensorflow as tf

from mask_ray.config import TrainSettings


def use_devices(precision: str, num_threads: int | None, local_rank: int, local_size: int) -> None:
    """Set this process's GPU, precision and threads, before TensorFlow uses any.

    Args:
        precision: `auto`, `float32` or `bfloat16`.
        num_threads: Threads of this worker; None for an equal share of the node's cores.
        local_rank: Number of this worker among those of its node, which selects its GPU.
        local_size: Number of workers on its node.
    """
    gpus = tf.config.list_physical_devices("GPU")
    capability = (0, 0)
    if gpus:
        gpu = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(gpu, "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", capability)
    keras.config.set_dtype_policy(dtype_policy(precision, capability))
    num_threads = num_threads or max(1, _num_cores() // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def _num_cores() -> int:
    """Return the cores that this process may use; all cores where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dtype_policy(precision: str, compute_capability: tuple[int, int]) -> str:
    """Return Keras's name for a precision setting.

    NVIDIA's GPUs compute in bfloat16 from compute capability 8.0 on:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions

    Args:
        precision: `auto`, `float32` or `bfloat16`.
        compute_capability: Major and minor version of the GPU; (0, 0) without a GPU.
    """
    if precision == "auto":
        precision = "bfloat16" if compute_capability >= (8, 0) else "float32"
    return "mixed_bfloat16" if precision == "bfloat16" else "float32"


def horovod_environment(settings: TrainSettings, timeline: Path) -> dict[str, str]:
    """Return what Horovod reads at `init`.

    https://horovod.readthedocs.io/en/stable/tensor-fusion.html
    """
    env: dict[str, str] = {}
    if settings.fusion_threshold_mb is not None:
        env["HOROVOD_FUSION_THRESHOLD"] = str(int(settings.fusion_threshold_mb * 2**20))
    if settings.cycle_time_ms is not None:
        env["HOROVOD_CYCLE_TIME"] = str(settings.cycle_time_ms)
    if settings.timeline:
        env["HOROVOD_TIMELINE"] = str(timeline)
    return env
