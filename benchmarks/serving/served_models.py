"""The model of the serving benchmark, as ONNX and as Keras: ImageNet weights, and a head at random.

How fast it answers does not depend on what the head has learned.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mask_ray.images.decode import decode_resized
from mask_ray.models import mobilenet, onnx_export, pretrained, quantize
from mask_ray.models.predictor import Predictor

CLASS_NAMES = ["with_mask", "without_mask"]
_ALPHA = 1.0


def write_onnx(path: Path, backbone_weights: str, image_size: int) -> Path:
    """As training writes it."""
    values = pretrained.read(backbone_weights, _ALPHA)
    backbone = onnx_export.backbone_onnx(values, image_size=image_size, alpha=_ALPHA)
    path.write_bytes(onnx_export.classifier_onnx(backbone, *_head(len(values[-1])), CLASS_NAMES))
    return path


def write_int8(path: Path, float32: Path, photos: Sequence[Path]) -> Path:
    """As training writes it by default, where that is as good and faster."""
    image_size = Predictor(float32).image_size
    images = [decode_resized(photo.read_bytes(), image_size) for photo in photos]
    quantize.quantize(float32, path, np.stack(images))
    return path


def _head(num_features: int) -> tuple[mobilenet.Array, mobilenet.Array]:
    shape = (num_features, len(CLASS_NAMES))
    kernel = np.random.default_rng(0).normal(scale=0.1, size=shape).astype(np.float32)
    return kernel, np.zeros(len(CLASS_NAMES), np.float32)


def main() -> None:
    """Write the Keras file; a process of its own, for TensorFlow's memory."""
    path, backbone_weights, image_size = sys.argv[1:]
    from mask_ray.models import keras_model

    values = pretrained.read(backbone_weights, _ALPHA)
    classifier = keras_model.build(
        num_classes=len(CLASS_NAMES),
        image_size=int(image_size),
        alpha=_ALPHA,
        from_scratch=False,
    )
    keras_model.load_backbone_weights(classifier, values)
    classifier.layers[-1].set_weights(_head(len(values[-1])))
    classifier.save(path)


if __name__ == "__main__":
    main()
