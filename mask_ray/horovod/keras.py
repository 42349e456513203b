"""Horovod for Keras 3 models: gradient averaging, initial broadcast, exact metric averages.

`horovod.tensorflow.keras` imports Keras 2 internals and fails on Keras 3
(https://github.com/horovod/horovod/issues/4290); Horovod's own operations work. Compile with
`jit_compile=False`: they do not run inside XLA.
"""

import zlib
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf


def distributed_optimizer(
    optimizer: keras.optimizers.Optimizer, compression: Any = hvd.Compression.none
) -> keras.optimizers.Optimizer:
    """Return a copy of `optimizer` that averages gradients over all workers before each update.

    With `gradient_accumulation_steps`, gradients are averaged once per update, not per step.
    The copy's class keeps the name and module of the original, so that a model saved with it
    loads without Horovod.

    Args:
        optimizer: Any Keras optimizer.
        compression: Compression of gradients; `hvd.Compression.fp16` halves their size.
    """
    original = type(optimizer)

    def update(self: Any, grads: list[Any], variables: list[Any], learning_rate: Any) -> None:
        if hvd.size() > 1:
            grads = hvd.grouped_allreduce(list(grads), op=hvd.Average, compression=compression)
        super(distributed, self)._backend_update_step(grads, variables, learning_rate)

    distributed: Any = type(
        original.__name__,
        (original,),
        {"_backend_update_step": update, "__module__": original.__module__},
    )
    return distributed.from_config(optimizer.get_config())


def broadcast_state(model: keras.Model, root_rank: int = 0) -> None:
    """Give every worker the weights and optimizer state of `root_rank`.

    The optimizer is built first, so that its variables are included. Seeds of random layers stay
    different, so that workers do not draw the same augmentations.
    """
    model.optimizer.build(model.trainable_variables)
    if hvd.size() == 1:
        return
    shared = [*model.weights, *model.optimizer.variables]
    values = [variable.numpy() for variable in shared]
    # One array of bytes, since `hvd.broadcast_variables` traces an operation per variable, which
    # takes seconds with hundreds of them.
    sent = np.frombuffer(b"".join(value.tobytes() for value in values), np.uint8)
    received = hvd.broadcast(tf.constant(sent), root_rank=root_rank).numpy()
    ends = np.cumsum([value.nbytes for value in values])
    for variable, value, part in zip(shared, values, np.split(received, ends[:-1]), strict=True):
        variable.assign(np.frombuffer(part.tobytes(), value.dtype).reshape(value.shape))


def average_batch_statistics(model: keras.Model) -> None:
    """Set the moving means and variances of batch norm to their average over all workers.

    Each worker updates them from its own batches, and they have no gradients to average.
    """
    moving = [v for v in model.non_trainable_variables if v.name.startswith("moving_")]
    if hvd.size() == 1 or not moving:
        return
    averaged = hvd.grouped_allreduce(
        [tf.convert_to_tensor(v.value) for v in moving], op=hvd.Average
    )
    for variable, value in zip(moving, averaged, strict=True):
        variable.assign(value)


def global_metrics(model: keras.Model) -> dict[str, float]:
    """Return the model's current metrics over the images of all workers.

    Keras metrics keep sums and counts. These are added over the workers, so every image counts
    once, even if workers saw different numbers of images. The metrics hold the global sums
    afterwards: reset them before the next use, as `fit` and `evaluate` do.

    Raises:
        ValueError: no worker saw an image.
    """
    variables = [v for metric in model.metrics for v in metric.variables]
    states = [tf.cast(tf.convert_to_tensor(v.value), tf.float64) for v in variables]
    for variable, total in zip(variables, hvd.grouped_allreduce(states, op=hvd.Sum), strict=True):
        variable.assign(tf.cast(total, variable.dtype))
    return {name: float(value) for name, value in model.get_metrics_result().items()}


def any_worker(flag: tf.Tensor) -> tf.Tensor:
    """Return whether the flag, a bool, is true on any worker. May be part of a compiled step."""
    if hvd.size() == 1:
        return flag
    return hvd.allreduce(tf.cast(flag, tf.float32), op=hvd.Sum, name="any_worker") > 0


def check_ranks_agree(model: keras.Model) -> None:
    """Check that all workers have exactly the same weights.

    Raises:
        RuntimeError: they differ, so the workers train different models.
    """
    checksum = 0
    for weight in model.weights:
        checksum = zlib.crc32(np.ascontiguousarray(weight.numpy()).tobytes(), checksum)
    checksums = hvd.allgather(tf.constant([checksum], dtype=tf.int64)).numpy().tolist()
    if len(set(checksums)) > 1:
        raise RuntimeError(f"the workers' weights differ; checksums by rank: {checksums}")
