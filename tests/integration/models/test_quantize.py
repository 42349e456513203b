"""A quantized model of real weights, on real photos."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mask_ray.config import ImageLimits
from mask_ray.images.decode import decode_resized
from mask_ray.models import mobilenet, onnx_export
from mask_ray.models.predictor import FeatureExtractor, Predictor
from mask_ray.models.quantize import images_per_second, quantize

NAMES = ["with_mask", "without_mask"]


def photos(shared: Path, num: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos of both classes, in random order, and their labels."""
    folder = shared / "data" / "observations"
    files = [path for name in NAMES for path in sorted((folder / name).iterdir())]
    if not files:
        pytest.skip(f"needs the photos in {folder}")
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:num]]
    with ThreadPoolExecutor(2) as pool:
        images = pool.map(
            lambda path: decode_resized(path.read_bytes(), image_size, ImageLimits()), chosen
        )
        stacked = np.stack(list(images))
    return stacked, np.array([NAMES.index(path.parent.name) for path in chosen])


def test_int8_is_as_good_on_photos_with_real_weights(shared: Path, tmp_path: Path) -> None:
    found = list((shared / "weights").glob("mobilenet_v2*.h5"))
    if not found:
        pytest.skip(f"needs the ImageNet weights in {shared / 'weights'}")
    images, labels = photos(shared, num=1000, image_size=128)
    weights = mobilenet.read_h5(found[0].read_bytes(), alpha=1.0)
    backbone = onnx_export.backbone_onnx(weights, image_size=128, alpha=1.0)
    features = FeatureExtractor(backbone, num_threads=2).extract(images)
    head = LogisticRegression(max_iter=300).fit(features[:500], labels[:500])
    kernel = np.stack([np.zeros_like(head.coef_[0]), head.coef_[0]], axis=1).astype(np.float32)
    bias = np.array([0, head.intercept_[0]], np.float32)
    float32, int8 = tmp_path / "float32.onnx", tmp_path / "int8.onnx"
    float32.write_bytes(onnx_export.classifier_onnx(backbone, kernel, bias, NAMES))

    quantize(float32, int8, images[:256])

    found_labels = [
        Predictor(path).predict(images[500:]).argmax(axis=1) for path in (float32, int8)
    ]
    accuracies = [float((found == labels[500:]).mean()) for found in found_labels]
    rates = images_per_second([Predictor(float32), Predictor(int8)], images[500:])
    print(json.dumps({"accuracies": accuracies, "images_per_second": rates}))
    assert accuracies[0] > 0.97
    assert accuracies[1] > accuracies[0] - 0.01
    assert (found_labels[0] == found_labels[1]).mean() > 0.98
