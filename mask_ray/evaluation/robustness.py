"""Measure accuracy on corrupted images: blurred, noisy, dark, compressed, rotated, covered.

After Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", https://arxiv.org/abs/1903.12261; strengths are chosen for photos of faces.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mask_ray.evaluation.intervals import share_interval
from mask_ray.models.predictor import Images, Predictor

Pixels = NDArray[np.uint8]
Corruption = Callable[[Pixels, float, np.random.Generator], Pixels]


def _blur(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    radius = share * len(image)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    noisy = image + rng.normal(0, 255 * deviation, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _low_light(image: Pixels, light: float, rng: np.random.Generator) -> Pixels:
    return (image * light).astype(np.uint8)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=int(quality))
    with Image.open(encoded) as decoded:
        return np.asarray(decoded)


def _rotation(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    angle = float(rng.choice([-degrees, degrees]))
    mean = tuple(image.mean(axis=(0, 1)).astype(int).tolist())
    rotated = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=mean)
    return np.asarray(rotated)


def _occlusion(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    side = round(share**0.5 * len(image))
    top, left = rng.integers(0, len(image) - side + 1, 2)
    covered = image.copy()
    covered[top : top + side, left : left + side] = 128
    return covered


# For each corruption its strengths, from mild to strong, and the text that describes one.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], str]] = {
    "blur": (_blur, (0.01, 0.02, 0.04), "radius {:.0%} of the side"),
    "noise": (_noise, (0.05, 0.1, 0.2), "deviation {:.0%} of white"),
    "low light": (_low_light, (0.5, 0.25, 0.1), "{:.0%} of the light"),
    "JPEG": (_jpeg, (30, 15, 5), "quality {:.0f}"),
    "rotation": (_rotation, (10, 25, 45), "{:.0f} degrees"),
    "occlusion": (_occlusion, (0.05, 0.15, 0.3), "{:.0%} of the area"),
}


def accuracy_under_corruption(
    predictor: Predictor, images: Images, labels: NDArray[np.int64], seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Return accuracy with its interval by corruption and strength, mild first.

    Args:
        predictor: The model.
        images: uint8 (N, S, S, 3), N >= 1, S the image size of the model.
        labels: True classes.
        seed: Seed of noise and of the covered places.
    """
    settings = [(name, level) for name, (_, levels, _) in CORRUPTIONS.items() for level in levels]

    def measure(setting: tuple[str, float]) -> dict[str, Any]:
        name, level = setting
        corrupt, _, text = CORRUPTIONS[name]
        rng = np.random.default_rng(seed)
        corrupted = np.stack([corrupt(image, level, rng) for image in images])
        num_right = int((predictor.predict(corrupted).argmax(axis=1) == labels).sum())
        return {
            "strength": text.format(level),
            "accuracy": num_right / len(labels),
            "interval": share_interval(num_right, len(labels)),
        }

    # One thread corrupts images while another classifies.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        measured = list(pool.map(measure, settings))
    by_corruption: dict[str, list[dict[str, Any]]] = {name: [] for name in CORRUPTIONS}
    for (name, _), figures in zip(settings, measured, strict=True):
        by_corruption[name].append(figures)
    return by_corruption
