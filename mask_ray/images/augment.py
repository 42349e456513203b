"""Augment photos: random views, as another camera might have taken them.

The steps follow the order of the real world: pose of the face, what covers it, light, lens, sensor,
file. Only Pillow and numpy are used, so that it runs in every process that decodes images.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

# Share of images that each slow or destructive step is applied to.
_SHARE = 0.2


def augment(image: Pixels, rng: np.random.Generator, strength: float = 1.0) -> Pixels:
    """Make a random view of an image.

    Args:
        image: RGB of shape (S, S, 3).
        rng: Random generator; the same state gives the same view.
        strength: Factor on every range; 0 returns the image unchanged.

    Returns:
        RGB of the same shape.
    """
    if strength == 0:
        return image
    view = _posed(image, rng, strength)
    if rng.random() < _SHARE:
        view = _occluded(view, rng, strength)
    picture = _lit(Image.fromarray(view), rng, strength)
    if rng.random() < _SHARE:
        picture = _blurred(picture, rng, strength)
    if rng.random() < _SHARE:
        picture = _noisy(picture, rng, strength)
    if rng.random() < _SHARE:
        picture = _recompressed(picture, rng, strength)
    return np.asarray(picture)


def _posed(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Mirror, rotate by up to 20 degrees, zoom by up to 20 % and shift by up to 8 %."""
    size = len(image)
    angle = np.deg2rad(20) * strength * rng.uniform(-1, 1)
    zoom = np.exp(0.2 * strength * rng.uniform(-1, 1))
    shift = 0.08 * strength * size * rng.uniform(-1, 1, size=2)
    mirror = rng.choice([-1.0, 1.0])
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    turn = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    centre = size / 2
    # Wide enough that the view's corners repeat the picture's edge rather than being black.
    margin = max(0, int(np.ceil((np.abs(turn) @ (centre + np.abs(shift))).max() - centre)))
    # Pillow wants the map from pixels of the view to pixels of the picture.
    origin = centre + margin - turn @ (centre + shift)
    padded = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge"))
    matrix = (turn[0, 0], turn[0, 1], origin[0], turn[1, 0], turn[1, 1], origin[1])
    posed = padded.transform(
        (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.array(posed)


def _occluded(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Cover a rectangle of up to 35 % of each side with one colour, as a hand or cup would."""
    size = len(image)
    height, width = (size * 0.35 * min(strength, 2) * rng.uniform(0.2, 1, size=2)).astype(int)
    top, left = rng.integers(0, size - height), rng.integers(0, size - width)
    image[top : top + height, left : left + width] = rng.integers(0, 256, size=3)
    return image


def _lit(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Change brightness, contrast, gamma and colour of the light, with a table per channel."""
    gamma = np.exp(0.4 * strength * rng.uniform(-1, 1))
    contrast = np.exp(0.3 * strength * rng.uniform(-1, 1))
    brightness = 0.15 * strength * rng.uniform(-1, 1)
    tint = 1 + 0.06 * strength * rng.uniform(-1, 1, size=(3, 1))
    levels = np.linspace(0, 1, 256) ** gamma
    table = ((levels - 0.5) * contrast + 0.5 + brightness) * tint
    return picture.point((table.clip(0, 1) * 255).round().astype(int).ravel().tolist())


def _blurred(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    radius_px = picture.width / 128 * strength * rng.uniform(0.3, 1.5)
    return picture.filter(ImageFilter.GaussianBlur(radius_px))


def _noisy(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    pixels = np.asarray(picture)
    deviation = np.float32(16 * strength * rng.uniform(0.2, 1))
    noise = deviation * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _recompressed(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(np.clip(95 - 70 * strength * rng.random(), 10, 95)))
    return Image.open(buffer).convert("RGB")
