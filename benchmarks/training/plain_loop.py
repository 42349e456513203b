"""Fine-tuning in Keras alone, an epoch whenever a line comes in: the peer of trainer_overhead.

Neither Ray nor Horovod is imported. The model, its optimizer and the compiled step are those of
the project's own loop; the images lie in memory.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mask_ray.models import keras_model as models
from mask_ray.models import mobilenet


class Loop:
    """A model, images, and a compiled step."""

    def __init__(self, arrays: Path, weights: Path, finetune_from: str, batch_size: int) -> None:
        with np.load(arrays) as saved:
            self._images, self._labels = saved["image"], saved["label"]
        self._batch_size = batch_size
        self._model = models.build(
            num_classes=int(self._labels.max()) + 1,
            image_size=self._images.shape[1],
            alpha=1.0,
            from_scratch=False,
        )
        backbone = mobilenet.read_h5(weights.read_bytes(), alpha=1.0)
        models.load_backbone_weights(self._model, backbone)
        models.thaw_backbone(self._model, finetune_from)
        num_steps = -(-len(self._labels) // batch_size)
        self._model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-4, 100 * num_steps)),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
        self._step = _compiled(self._model)
        self._rng = np.random.default_rng(0)

    def epoch(self) -> float:
        """Images a second of one pass over all of them, in a new order."""
        started = time.perf_counter()
        self._model.reset_metrics()
        order = self._rng.permutation(len(self._labels))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            self._step(self._images[rows], self._labels[rows])
        self._model.get_metrics_result()
        return len(order) / (time.perf_counter() - started)


def _compiled(model: keras.Model) -> Callable[[NDArray[Any], NDArray[Any]], None]:
    shape, dtype = model.input_shape[1:], model.input.dtype
    # Metrics make their variables on first use; inside a compiled step that compiles it twice.
    model.test_step((np.zeros((1, *shape), dtype), np.zeros(1, np.int64)))
    signature = [tf.TensorSpec((None, *shape), dtype), tf.TensorSpec((None,), tf.int64)]

    @partial(tf.function, input_signature=signature)
    def step(batch: tf.Tensor, label: tf.Tensor) -> None:
        model.train_step((batch, label))

    return step


def main() -> None:
    """An epoch for each line on standard input, its images a second on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", type=Path, required=True, help=".npz of `image` and `label`.")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2's, as .h5.")
    parser.add_argument("--finetune-from", required=True, help="First block that is trained.")
    parser.add_argument("--batch-size", type=int, required=True, help="Images per step.")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loop = Loop(given.arrays, given.weights, given.finetune_from, given.batch_size)
    for _ in sys.stdin:
        print(json.dumps({"images_per_second": loop.epoch()}), flush=True)


if __name__ == "__main__":
    main()
