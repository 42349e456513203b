"""Two ways to train a mask detector in Keras alone, each a process of its own.

    python -m benchmarks.training.peers demo|plain --photos SPLIT.json --weights FILE.h5 ...

Its last line is one JSON object: seconds and validation accuracy of each epoch. Ends with the
first epoch that reaches the target.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# As the demo imports it; Keras 3 keeps it there, for code of its day.
from tensorflow.keras.preprocessing.image import ImageDataGenerator

from benchmarks.training.splits import Labelled, Split
from mask_ray.config import TrainSettings
from mask_ray.images.decode import decode_resized
from mask_ray.models import keras_model as models
from mask_ray.models import mobilenet

_DEMO_IMAGE_SIZE = 224
IMAGE_SIZE: int = TrainSettings.model_fields["image_size"].default


class _UntilTarget(keras.callbacks.Callback):
    """Times the epochs, with their validation, and ends training at the target."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self._target = target

    def on_train_begin(self, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        val_accuracy = float(logs["val_accuracy"])
        self.epochs.append({"seconds": seconds, "val_accuracy": val_accuracy})
        print(f"epoch {epoch + 1}  {seconds:.1f} s  val_accuracy {val_accuracy:.4f}", flush=True)
        self.model.stop_training = val_accuracy >= self._target


def demo(photos: Split, weights: Path, max_epochs: int, until: _UntilTarget) -> None:
    """The recipe of MLRun's mask-detection demo (github.com/mlrun/demos, tf-keras).

    A frozen MobileNetV2 at 224 px below a head of two dense layers; all photos in memory, as
    float32; views by ImageDataGenerator in numpy and SciPy, one at a time; batches of 32.
    """
    x, y = _demo_arrays(photos.train, len(photos.class_names))
    generator = ImageDataGenerator(
        rotation_range=20,
        zoom_range=0.15,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.15,
        horizontal_flip=True,
        fill_mode="nearest",
    )
    model = _demo_model(len(photos.class_names), weights)
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        generator.flow(x, y, batch_size=32),
        validation_data=_demo_arrays(photos.val, len(photos.class_names)),
        epochs=max_epochs,
        callbacks=[until],
        verbose=0,
    )


def _demo_arrays(rows: list[Labelled], num_classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    size = (_DEMO_IMAGE_SIZE, _DEMO_IMAGE_SIZE)
    images = [keras.utils.img_to_array(keras.utils.load_img(p, target_size=size)) for p, _ in rows]
    scaled = keras.applications.mobilenet_v2.preprocess_input(np.stack(images))
    return scaled, keras.utils.to_categorical([label for _, label in rows], num_classes)


def _demo_model(num_classes: int, weights: Path) -> keras.Model:
    backbone = keras.applications.MobileNetV2(
        input_shape=(_DEMO_IMAGE_SIZE, _DEMO_IMAGE_SIZE, 3), include_top=False, weights=str(weights)
    )
    backbone.trainable = False
    x = keras.layers.AveragePooling2D((7, 7))(backbone.output)
    x = keras.layers.Dense(128, activation="relu")(keras.layers.Flatten()(x))
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(backbone.input, keras.layers.Dense(num_classes, activation="softmax")(x))


def plain(photos: Split, weights: Path, max_epochs: int, until: _UntilTarget) -> None:
    """The project's own model in a plain Keras loop, written with care.

    Photos in memory at the project's image size, as uint8; views by Keras layers in tf.data,
    batch by batch, on all cores and ahead of the training; batches of 64.
    """
    model = models.build(
        num_classes=len(photos.class_names), image_size=IMAGE_SIZE, alpha=1.0, from_scratch=False
    )
    models.load_backbone_weights(model, mobilenet.read_h5(weights.read_bytes(), alpha=1.0))
    model.get_layer("backbone").trainable = False
    model.compile(
        keras.optimizers.Adam(1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    train = tf.data.Dataset.from_tensor_slices(_plain_arrays(photos.train))
    train = train.shuffle(len(photos.train)).batch(64).map(_augmenting(), tf.data.AUTOTUNE)
    model.fit(
        train.prefetch(tf.data.AUTOTUNE),
        validation_data=tf.data.Dataset.from_tensor_slices(_plain_arrays(photos.val)).batch(256),
        epochs=max_epochs,
        callbacks=[until],
        verbose=0,
    )


def _plain_arrays(rows: list[Labelled]) -> tuple[NDArray[Any], NDArray[Any]]:
    images = [decode_resized(Path(path).read_bytes(), IMAGE_SIZE) for path, _ in rows]
    return np.stack(images), np.asarray([label for _, label in rows])


def _augmenting() -> Callable[[Any, Any], tuple[Any, Any]]:
    layers = [
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomRotation(20 / 360, fill_mode="nearest"),
        keras.layers.RandomZoom(0.15, fill_mode="nearest"),
        keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest"),
    ]

    def augment(images: Any, labels: Any) -> tuple[Any, Any]:
        images = tf.cast(images, tf.float32)
        for layer in layers:
            images = layer(images, training=True)
        return tf.cast(images, tf.uint8), labels

    return augment


_PEERS = {"demo": demo, "plain": plain}


def main() -> None:
    """Train one peer; a line for each epoch, and JSON at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=_PEERS)
    parser.add_argument("--photos", type=Path, required=True, help="Split, as JSON.")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2's, as .h5.")
    parser.add_argument("--target", type=float, required=True, help="Validation accuracy.")
    parser.add_argument("--max-epochs", type=int, required=True, help="At most so many.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, order and views.")
    given = parser.parse_args()
    keras.utils.set_random_seed(given.seed)
    until = _UntilTarget(given.target)
    _PEERS[given.peer](Split.read(given.photos), given.weights, given.max_epochs, until)
    print(json.dumps({"epochs": until.epochs}), flush=True)


if __name__ == "__main__":
    main()
