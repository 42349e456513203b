"""Accuracy on images that are worse than those of the data set.

Kinds of harm and rising strengths as Hendrycks and Dietterich 2019 have them
(https://arxiv.org/abs/1903.12261), with strengths for small pictures of what the model sees.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mask_ray.predictor import Images, Predictor

Harm = Callable[[Images, float, np.random.Generator], Images]


def _blur(image: Images, radius_share: float, _: np.random.Generator) -> Images:
    radius_px = radius_share * len(image)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius_px)))


def _noise(image: Images, deviation: float, rng: np.random.Generator) -> Images:
    noisy = image + rng.normal(scale=255 * deviation, size=image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _low_light(image: Images, kept: float, rng: np.random.Generator) -> Images:
    """Fewer photons: darker, with noise that grows as the root of the light."""
    photons_at_white = 400 * kept
    dark = rng.poisson(image / 255 * photons_at_white) / photons_at_white * 255 * kept
    return np.clip(dark, 0, 255).astype(np.uint8)


def _jpeg(image: Images, quality: float, _: np.random.Generator) -> Images:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=int(quality))
    return np.asarray(Image.open(encoded))


def _rotation(image: Images, degrees: float, rng: np.random.Generator) -> Images:
    angle = degrees * rng.choice((-1, 1))
    # The edge goes on beyond the picture, as black corners would be another harm.
    margin = len(image) // 2
    wide = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge"))
    turned = wide.rotate(angle, Image.Resampling.BILINEAR)
    box = (margin, margin, margin + image.shape[1], margin + image.shape[0])
    return np.asarray(turned.crop(box))


def _occlusion(image: Images, area: float, rng: np.random.Generator) -> Images:
    side = round(len(image) * area**0.5)
    top, left = rng.integers(len(image) - side + 1, size=2)
    covered = image.copy()
    covered[top : top + side, left : left + side] = 128
    return covered


# By name: what is done, what its strength is, and rising strengths.
HARMS: dict[str, tuple[Harm, str, tuple[float, float, float]]] = {
    "blur": (_blur, "radius, share of the side", (0.01, 0.02, 0.04)),
    "noise": (_noise, "standard deviation, share of white", (0.05, 0.1, 0.2)),
    "low light": (_low_light, "light that is left", (0.5, 0.25, 0.1)),
    "JPEG": (_jpeg, "quality", (30, 15, 7)),
    "rotation": (_rotation, "degrees", (10, 20, 40)),
    "occlusion": (_occlusion, "share of the area", (0.1, 0.2, 0.35)),
}


def harmed(image: Images, name: str, strength: float, rng: np.random.Generator) -> Images:
    """A worse copy of a picture of shape (S, S, 3)."""
    return HARMS[name][0](image, strength, rng)


def accuracies(
    predictor: Predictor, images: Images, labels: NDArray[np.int64], seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """By kind of harm: strengths, and the accuracy at each.

    Args:
        predictor: The model.
        images: uint8 of shape (N, S, S, 3), N >= 1.
        labels: Shape (N,).
        seed: Of what is random about it.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, (_, _, strengths) in HARMS.items():
        rng = np.random.default_rng(seed)
        found[name] = []
        for strength in strengths:
            worse = np.stack([harmed(image, name, strength, rng) for image in images])
            predicted = predictor.predict(worse).argmax(axis=1)
            found[name].append((strength, float((predicted == labels).mean())))
    return found
