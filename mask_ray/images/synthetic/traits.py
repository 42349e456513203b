"""Traits of a drawn portrait, each declared with the range it is sampled from."""

# The linter does not see that these defaults are dataclass fields.
# ruff: noqa: RUF009

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Points = NDArray[np.float64]
T = TypeVar("T")


def _palette(codes: str) -> tuple[Colour, ...]:
    return tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in codes.split())


SKINS = _palette("fbdcc4 f3c9a5 e8b48c d69c72 bb8055 9a643f 774a2f 573522")
HAIRS = _palette("1d1a1c 33241f 33241f 553526 7d4b2a a8713c d9b26a 8f8d8f dcd8d2 b0506a")
IRISES = _palette("3a2417 5a3a22 7a5c35 4f7350 4d7ca3 6a7885")
MEDICAL = _palette("a9d3e8 8fc4dd bfe3d8 f2f5f6 f2f5f6 f3c6d0 cfc4e6 2b2d33 2b2d33")
CLOTHS = _palette("4a5568 35577d 3f7d6e 9cc9b0 e6dccb d7b48a d9a441 d9734e b5423f 7b5d96")
FABRICS = MEDICAL + CLOTHS
LIPS, DARK, WHITE = _palette("b03a48 2a2024 fbfaf7")


# Outline of the hair, as a multiple of the head's.
HAIR_VOLUMES = {"bald": 0.0, "buzz": 1.02, "short": 1.08, "quiff": 1.16, "curls": 1.06}
HAIR_VOLUMES |= {"afro": 1.15, "bun": 1.07, "bob": 1.12, "long": 1.1}
HAIR_VOLUMES |= {"headscarf": 1.1, "beanie": 1.12}

# In the frame of the face: x is a share of its half width, y runs from -1 (crown) over 0 (eyes),
# 0.38 (tip of the nose) and 0.65 (mouth) to 1 (chin).
MASK_OUTLINES = {
    "surgical": "0 .1 .3 .15 .62 .27 .93 .33 .95 .56 .9 .76 .62 .96 .3 1.06 0 1.08",
    "cloth": "0 .1 .22 .13 .5 .26 .82 .33 .97 .42 .96 .62 .86 .82 .5 1.02 0 1.1",
    "ffp2": "0 .08 .16 .12 .46 .3 .82 .47 .9 .56 .8 .72 .6 .93 .3 1.07 0 1.12",
    "chin": "0 .93 .4 .9 .75 .78 .97 .6 1 .68 .98 .86 .7 1.1 .35 1.22 0 1.25",
}
BEARDS = {
    "moustache": "0 .47 .18 .46 .38 .57 .18 .56 0 .54",
    "full": "0 .47 .28 .47 .5 .56 .8 .3 .97 .02 1 .1 1 .5 .98 .8 .75 1 .4 1.1 0 1.12",
}
BEARDS["stubble"] = BEARDS["full"]
HAIRLINES = {
    "swept": "-.99 .02 -.9 -.4 -.4 -.4 .2 -.6 .85 -.5 .99 .02",
    "bangs": "-.99 .12 -.88 -.3 -.4 -.25 .4 -.25 .88 -.3 .99 .12",
    "high": "-.99 -.02 -.86 -.5 -.5 -.66 .5 -.66 .86 -.5 .99 -.02",
    "parted": "-.99 .15 -.84 -.3 -.1 -.72 .1 -.72 .84 -.3 .99 .15",
}
# In half heights of the head, seen from the front.
HAIR_BACKS = {
    "long": "0 -1.12 .6 -.95 .9 -.3 .95 .5 1.05 1.3 .8 1.75 0 1.7",
    "bob": "0 -1.12 .6 -.95 .92 -.3 1 .4 .95 .95 .6 1.05 0 1",
    "headscarf": "0 -1.14 .6 -.95 .9 -.2 .9 .7 .85 1.15 1.3 1.6 0 1.9",
}


def _drawn(sampler: Callable[[np.random.Generator], object]) -> Any:
    return field(metadata={"sampler": sampler})


def _between(low: float, high: float) -> Any:
    return _drawn(lambda rng: rng.uniform(low, high))


def _one_of(*options: object) -> Any:
    return _drawn(lambda rng: options[rng.integers(len(options))])


def _colour(palette: tuple[Colour, ...]) -> Any:
    def sampler(rng: np.random.Generator) -> Colour:
        colour = np.multiply(palette[rng.integers(len(palette))], rng.normal(1, 0.06))
        return rgb(colour + rng.normal(0, 2.5, 3))

    return _drawn(sampler)


def _sample(kind: type[T], rng: np.random.Generator) -> T:
    traits: Any = fields(kind)  # type: ignore[arg-type]
    return kind(**{trait.name: trait.metadata["sampler"](rng) for trait in traits})


@dataclass(frozen=True)
class Person:
    """A head: where it is in the image (shares of its side; radians) and what it looks like."""

    x: float = _between(0.42, 0.58)
    y: float = _between(0.43, 0.52)
    scale: float = _between(0.28, 0.38)
    tilt: float = _between(-0.22, 0.22)
    turn: float = _between(-0.42, 0.42)
    skin: Colour = _colour(SKINS)
    width: float = _between(0.72, 0.84)
    taper: float = _between(0.08, 0.3)
    iris: Colour = _colour(IRISES)
    eye_size: float = _between(0.85, 1.2)
    gaze: float = _between(-0.04, 0.04)
    brow_lift: float = _between(-0.06, 0.05)
    nose: float = _between(0.8, 1.25)
    smile: float = _between(-0.04, 0.1)
    mouth_open: float = _between(-0.2, 0.16)
    rouge: float = _between(0.3, 0.9)
    beard: str = _one_of("none", "none", "none", "none", "stubble", "full", "full", "moustache")
    hair: str = _one_of(*HAIR_VOLUMES, "short", "long", "quiff")
    hair_colour: Colour = _colour(HAIRS)
    hairline: str = _one_of(*HAIRLINES)
    headwear: Colour = _colour(FABRICS)
    glasses: str = _one_of("none", "none", "none", "round", "square")
    glasses_colour: Colour = _colour(HAIRS + CLOTHS)


@dataclass(frozen=True)
class Mask:
    """A mask worn over nose and mouth, or pulled down `under_chin`."""

    kind: str = _one_of("surgical", "surgical", "cloth", "cloth", "ffp2")
    medical: Colour = _colour(MEDICAL)
    fabric: Colour = _colour(FABRICS)
    accent: Colour = _colour(FABRICS)
    pattern: str = _one_of("plain", "plain", "dots", "stripes", "check")
    under_chin: bool = _one_of(False)


@dataclass(frozen=True)
class Scene:
    """Clothes and backdrop; `marks` are (x, y, size, colour) of 8 things behind, from 0 to 1."""

    outfit: Colour = _colour(FABRICS)
    trim: Colour = _colour(FABRICS)
    neckline: str = _one_of("round", "vee", "collar", "high")
    scarf: bool = _one_of(True, False, False, False, False)
    backdrop: str = _one_of("plain", "bokeh", "shelves", "curtains", "hills")
    wall: Colour = _colour(FABRICS + SKINS)
    paleness: float = _between(0, 0.7)
    marks: Points = _drawn(lambda rng: rng.random((8, 4)))
    side: int = _one_of(-1, 1)


@dataclass(frozen=True)
class Camera:
    """Light and lens: sigma of `blur` in pixels at 128 pixels, of `noise` in grey levels."""

    brightness: float = _between(-12, 24)
    contrast: float = _between(0.82, 1.12)
    warmth: float = _between(-0.06, 0.06)
    shadow: float = _between(0, 0.35)
    shadow_angle: float = _between(0, 2 * np.pi)
    shadow_edge: float = _one_of(1.5, 3.0, 12.0)
    blur: float = _between(-1.2, 1.0)
    noise: float = _between(0, 6)
    noise_seed: int = _drawn(lambda rng: int(rng.integers(2**32)))
    jpeg_quality: int = _drawn(lambda rng: int(rng.integers(70, 96)))


@dataclass(frozen=True)
class Portrait:
    """All that `paint` needs. `hand` is where a hand is held: `mouth`, `cheek` or `none`."""

    person: Person
    mask: Mask | None
    hand: str
    scene: Scene
    camera: Camera


def sample(index: int, *, seed: int = 0) -> Portrait:
    """Sample image `index`: with a worn mask if even; if odd, sometimes with a lowered one."""
    rng = np.random.default_rng([seed, index])
    person, scene, camera = _sample(Person, rng), _sample(Scene, rng), _sample(Camera, rng)
    mask, twist = _sample(Mask, rng), rng.random()
    if index % 2 == 0:
        return Portrait(person, mask, "cheek" if twist < 0.08 else "none", scene, camera)
    hand = "mouth" if twist < 0.12 else "cheek" if twist < 0.2 else "none"
    lowered = replace(mask, under_chin=True) if twist > 0.86 else None
    return Portrait(person, lowered, hand, scene, camera)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix a `share` of `b`, from 0 to 1, into `a`."""
    return rgb(np.add(a, np.subtract(b, a) * share))


def darker(colour: Colour) -> Colour:
    """Darken a colour, for shadows and outlines."""
    return mix(colour, DARK, 0.25)


def rgb(values: NDArray[Any]) -> Colour:
    """Round and clip three numbers to a colour."""
    red, green, blue = values.clip(0, 255).astype(int).tolist()
    return red, green, blue
