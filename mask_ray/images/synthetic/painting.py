"""Paint a portrait, layer by layer, and take a photograph of the painting."""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mask_ray.images.synthetic.traits import (
    BEARDS,
    DARK,
    FABRICS,
    HAIR_BACKS,
    HAIR_VOLUMES,
    HAIRLINES,
    LIPS,
    MASK_OUTLINES,
    SKINS,
    WHITE,
    Camera,
    Colour,
    Mask,
    Person,
    Points,
    Portrait,
    Scene,
    darker,
    mix,
)

SUPERSAMPLING = 2


@lru_cache
def _points(numbers: str) -> Points:
    """Parse points written as "x y x y ..."."""
    return np.array(numbers.split(), float).reshape(-1, 2)


def _moved(points: Points, at: tuple[float, float], scale: tuple[float, float] = (1, 1)) -> Points:
    moved: Points = points * scale + at
    return moved


def _shape(
    numbers: str, at: tuple[float, float] = (0, 0), scale: tuple[float, float] = (1, 1)
) -> Points:
    return _moved(_points(numbers), at, scale)


@lru_cache
def _mirrored(numbers: str) -> Points:
    """Complete an outline from its right half, which runs from the top axis to the bottom."""
    right = _points(numbers)
    return np.concatenate([right, right[-2:0:-1] * (-1, 1)])


CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2


@lru_cache
def _spline(num_knots: int, closed: bool, num_steps: int = 5) -> Points:
    """Catmull-Rom weights: times knots of shape (num_knots, 2) gives a smooth line."""
    num_spans = num_knots if closed else num_knots - 1
    weights = np.zeros((num_spans * num_steps + 1, num_knots))
    for row, position in enumerate(np.arange(len(weights)) / num_steps):
        knot, t = int(position), position % 1
        basis = t ** np.arange(4) @ CATMULL_ROM
        for column, weight in enumerate(basis, start=knot - 1):
            column = column % num_knots if closed else min(max(column, 0), num_knots - 1)
            weights[row, column] += weight
    return weights


@lru_cache
def _taper(num_points: int) -> Points:
    """Return sideways offsets of half a line's thickness at its points: (num_points, 2)."""
    half: Points = np.sqrt(np.sin(np.linspace(0.3, np.pi - 0.3, num_points)))[:, None] * (-1, 1)
    return half


CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)), np.sin(np.linspace(0, 2 * np.pi, 25))], 1)


@dataclass(frozen=True)
class Brush:
    """Draws in half heights of the head, tilted with it; with `depth`, in the frame of the face.

    `depth` 1 is the skin, more lies in front of it; 0 is flat, where the head does not turn.
    """

    ink: ImageDraw.ImageDraw
    person: Person
    size_px: int
    tilt: float = 0.0
    depth: float = 0.0

    def blob(self, knots: Points, colour: Colour, alpha: int = 255) -> None:
        """Draw a smooth closed shape through `knots`."""
        self.polygon(_spline(len(knots), True) @ knots, colour, alpha)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, a: int = 255) -> None:
        """Draw an ellipse around (x, y) with radii `rx` and `ry`."""
        self.polygon(_moved(CIRCLE, (x, y), (rx, ry)), colour, a)

    def polygon(self, points: Points, colour: Colour, alpha: int = 255) -> None:
        """Draw a polygon with corners `points`."""
        self.ink.polygon(self.pixels(points), (*colour, alpha))

    def stroke(self, knots: Points, colour: Colour, width: float, alpha: int = 255) -> None:
        """Draw a smooth line through `knots`, which thins towards its ends."""
        line = self._project(_spline(len(knots), False) @ knots)
        along = np.concatenate([line[1:], line[-1:]]) - np.concatenate([line[:1], line[:-1]])
        across = along[:, ::-1] / (np.hypot(*along.T) + 1e-6)[:, None]
        across *= _taper(len(line)) * (width / 2 * self.person.scale * self.size_px)
        outline = np.concatenate([line + across, (line - across)[::-1]])
        self.ink.polygon(outline.ravel().tolist(), (*colour, alpha))

    def bend(self, points: Points) -> Points:
        """Map points from the frame of the face to that of the head, around which x is wrapped."""
        x, y = points.T
        angle = (np.arcsin(x.clip(-1, 1)) + self.person.turn).clip(-np.pi / 2, np.pi / 2)
        half_width = _half_widths(self.person, y.clip(-0.9, 0.8)) * self.depth
        bent: Points = np.array([half_width * np.sin(angle), y]).T
        return bent

    def pixels(self, points: Points) -> list[float]:
        """Convert `points` to pixels: x, y, x, y, ..."""
        flattened: list[float] = self._project(points).ravel().tolist()
        return flattened

    def _project(self, points: Points) -> Points:
        matrix, offset = self._affine
        projected: Points = (self.bend(points) if self.depth else points) @ matrix + offset
        return projected

    @cached_property
    def _affine(self) -> tuple[Points, Points]:
        # The head tilts about the top of the neck, so that the two never part.
        neck, centre = np.array([0, 0.9]), np.array([self.person.x, self.person.y])
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        tilted, unit_px = np.array([[cos, sin], [-sin, cos]]), self.person.scale * self.size_px
        return tilted * unit_px, (neck - neck @ tilted) * unit_px + centre * self.size_px


def _half_widths(person: Person, y: Points) -> Points:
    square = y * y
    rounded: Points = np.sqrt(1 - square * (0.6 + 0.4 * square)) * person.width
    return rounded * (1 - person.taper * y.clip(0) ** 2)


def paint(portrait: Portrait, image_size: int) -> NDArray[np.uint8]:
    """Paint a portrait: uint8 RGB of shape (image_size, image_size, 3)."""
    person, scene, size_px = portrait.person, portrait.scene, image_size * SUPERSAMPLING
    image = Image.new("RGB", (size_px, size_px), mix(scene.wall, WHITE, scene.paleness))
    body = Brush(ImageDraw.Draw(image, "RGBA"), person, size_px)
    head = replace(body, tilt=person.tilt)
    skin = replace(head, depth=1.0)
    _paint_backdrop(body.ink, scene, size_px)
    _paint_hair_behind(head, person)
    _paint_body(body, person, scene)
    _paint_head(head, skin, person)
    _paint_eyes(skin, person)
    _paint_nose(skin, person)
    _paint_mouth(skin, person)
    if portrait.mask:
        _paint_mask(replace(skin, depth=1.05), portrait.mask)
    if person.glasses != "none":
        _paint_glasses(skin, person)
    if person.hair != "bald":
        _paint_hair(head, skin, person)
    if portrait.hand != "none":
        _paint_hand(head, portrait.hand, scene.side)
    return _photograph(image.reduce(SUPERSAMPLING), portrait.camera)


def _paint_backdrop(ink: ImageDraw.ImageDraw, scene: Scene, size_px: int) -> None:
    for x, y, size, tone in scene.marks:
        colour = (FABRICS + SKINS)[int(tone * len(FABRICS + SKINS))]
        left, top, reach = x * size_px, y * size_px, (0.05 + 0.15 * size) * size_px
        if scene.backdrop == "bokeh":
            ink.ellipse((left - reach, top - reach, left + reach, top + reach), (*colour, 110))
        elif scene.backdrop == "shelves":
            shelf = (int(y * 4) + 1) * size_px / 4
            ink.rectangle((0, shelf, size_px, shelf + size_px / 64), (*DARK, 120))
            ink.rectangle((left, shelf - reach, left + reach / 3, shelf), colour)
        elif scene.backdrop == "curtains":
            ink.rectangle((left - reach, 0, left + reach, size_px), (*colour, 60))
        elif scene.backdrop == "hills":
            top = size_px * (0.4 + y / 2)
            ink.ellipse((left - 4 * reach, top, left + 4 * reach, 2 * size_px), (*colour, 150))


def _paint_hair_behind(head: Brush, person: Person) -> None:
    colour = person.headwear if person.hair == "headscarf" else person.hair_colour
    if person.hair == "afro":
        head.oval(0, -0.35, 1.15, 1.05, mix(colour, DARK, 0.25))
    elif person.hair == "bun":
        head.oval(0.1, -1.2, 0.36, 0.32, mix(colour, DARK, 0.25))
    elif person.hair in HAIR_BACKS:
        head.blob(_mirrored(HAIR_BACKS[person.hair]), mix(colour, DARK, 0.25))


def _paint_body(body: Brush, person: Person, scene: Scene) -> None:
    body.blob(_mirrored("0 1.3 .45 1.27 1.1 1.45 1.55 1.75 1.75 2.6 1.7 4 0 4.1"), scene.outfit)
    body.blob(_mirrored("0 .5 .4 .6 .38 1.15 .55 1.35 .35 1.75 0 1.85"), darker(person.skin))
    if scene.neckline != "high":
        body.blob(_mirrored("0 1.4 .37 1.25 .5 1.38 .3 1.66 0 1.74"), person.skin)
    if scene.neckline == "vee":
        body.polygon(_mirrored("0 2 .28 1.45 .5 1.25 .62 1.3 .3 1.9 0 2.2"), scene.trim)
    elif scene.neckline == "collar":
        for side in (-1, 1):
            wing = _shape("0 1.72 .42 1.2 .66 1.32 .5 1.85 .3 1.95", scale=(side, 1))
            body.polygon(wing, scene.trim)
    elif scene.neckline == "high":
        body.blob(_mirrored("0 1.2 .4 1.1 .52 1.45 .45 1.8 0 1.95"), darker(scene.outfit))
    else:
        body.stroke(_shape("-.55 1.33 -.3 1.64 0 1.74 .3 1.64 .55 1.33"), scene.trim, 0.12)
    if person.hair == "headscarf":
        body.blob(_mirrored("0 .6 .7 .7 .75 1.2 .95 1.6 .5 1.9 0 2"), person.headwear)
    elif scene.scarf:
        _paint_scarf(body, scene.trim, scene.side)


def _paint_scarf(body: Brush, colour: Colour, side: int) -> None:
    body.polygon(_shape(".1 1.3 .5 1.3 .6 2.7 .15 2.7", scale=(side, 1)), darker(colour))
    body.blob(_mirrored("0 1.12 .5 1 .75 1.2 .6 1.55 0 1.7"), colour)
    for fold in ("-.65 1.15 -.2 1.4 .5 1.35", "-.55 1.45 0 1.55 .6 1.25"):
        body.stroke(_shape(fold), darker(colour), 0.045)


def _paint_head(head: Brush, skin: Brush, person: Person) -> None:
    for side in () if person.hair == "headscarf" else (-1, 1):
        # The ear on the side the face turns to slips behind the head.
        x = side * (person.width + 0.03 - 0.4 * max(0.0, side * person.turn))
        head.oval(x, 0.12, 0.11, 0.21, person.skin)
        head.oval(x, 0.13, 0.06, 0.13, darker(person.skin))
    y = -np.cos(np.linspace(0, np.pi, 24))
    right = np.stack([_half_widths(person, y), y], 1)
    head.polygon(np.concatenate([right, right[::-1] * (-1, 1)]), person.skin)
    if person.hair in ("bald", "buzz"):
        head.oval(-0.25, -0.7, 0.2, 0.1, WHITE, 40)
    for side in (-1, 1):
        skin.oval(side * 0.58, 0.4, 0.19, 0.13, LIPS, int(60 * person.rouge))
    if person.beard != "none" and person.hair != "headscarf":
        alpha = 70 if person.beard == "stubble" else 255
        skin.blob(_mirrored(BEARDS[person.beard]), person.hair_colour, alpha)


def _paint_eyes(skin: Brush, person: Person) -> None:
    size, brow_y = person.eye_size, person.brow_lift - 0.25
    for side in (-1, 1):
        x = side * 0.43
        pupil_x, lids = x + person.gaze, (side, size)
        skin.oval(x, 0, 0.19, 0.11 * size, mix(WHITE, person.skin, 0.1))
        skin.oval(pupil_x, 0, 0.105, 0.095 * size, person.iris)
        skin.oval(pupil_x, 0, 0.055, 0.052 * size, DARK)
        skin.oval(pupil_x - 0.035, -0.035, 0.024, 0.022, WHITE)
        skin.stroke(_shape("-.21 .03 -.1 -.095 .08 -.1 .23 0", (x, 0), lids), DARK, 0.055)
        skin.stroke(_shape("-.15 .08 0 .12 .17 .07", (x, 0), lids), darker(person.skin), 0.025)
        brow = _shape("-.24 0 0 -.08 .26 .03", (x, brow_y), (side, 1))
        skin.stroke(brow, darker(person.hair_colour), 0.085)


def _paint_nose(skin: Brush, person: Person) -> None:
    # The nose stands out, so it turns further than the skin around it.
    at, scale = (0.25 * person.turn, 0), (person.nose, 1)
    skin.blob(_shape("-.09 .2 .07 .2 .15 .38 0 .44 -.15 .38", at, scale), WHITE, 18)
    ridge = _shape(".07 .17 .1 .3 .15 .38 .07 .43 0 .44 -.1 .42", at, scale)
    skin.stroke(ridge, mix(person.skin, DARK, 0.3), 0.045)


def _paint_mouth(skin: Brush, person: Person) -> None:
    lips = mix(person.skin, LIPS, person.rouge)
    corner_y = 0.64 - person.smile
    smile = np.array([(-0.3, corner_y), (-0.15, 0.64), (0.15, 0.64), (0.3, corner_y)])
    if person.mouth_open > 0.05:
        jaw = _shape(".17 .67 0 .69 -.17 .67", at=(0, person.mouth_open))
        inside = _moved(np.concatenate([smile, jaw]), (0, 0.095), (0.86, 0.86))
        skin.blob(np.concatenate([smile, jaw]), lips)
        skin.blob(inside, mix(DARK, LIPS, 0.3))
        skin.blob(np.concatenate([_moved(inside[:4], (0, 0.01)), [(0, 0.69)]]), WHITE)
    else:
        skin.blob(np.concatenate([smile, _shape(".12 .73 -.12 .73")]), lips)
        skin.blob(np.concatenate([smile, _shape(".08 .59 0 .61 -.08 .59")]), darker(lips))
        skin.stroke(smile, mix(lips, DARK, 0.5), 0.035)


def _paint_mask(cover: Brush, mask: Mask) -> None:
    colour = mask.fabric if mask.kind == "cloth" else mask.medical
    for side in (-1, 1):
        for loop in ("1.02 -.02 .98 .15 .9 .36", "1.02 .26 .98 .5 .9 .72"):
            cover.stroke(_shape(loop, scale=(side, 1)), mix(WHITE, colour, 0.4), 0.04)
    outline = _mirrored(MASK_OUTLINES["chin" if mask.under_chin else mask.kind])
    cover.blob(_moved(outline, (0, 0), (1.02, 1.01)), darker(colour))
    cover.blob(_moved(outline, (0, 0.02), (0.99, 0.97)), colour)
    if mask.under_chin:
        cover.stroke(_shape("-.7 .93 0 1.08 .7 .93"), darker(colour), 0.035)
        return
    cover.blob(_mirrored("0 .85 .8 .7 .7 .9 .4 1.05 0 1.07"), DARK, 28)
    if mask.kind == "surgical":
        for y in (0.42, 0.58, 0.74):
            cover.stroke(_shape("-.9 0 -.4 .05 .4 .05 .9 0", at=(0, y)), darker(colour), 0.035)
        cover.stroke(_shape("-.5 .27 -.2 .18 .2 .18 .5 .27"), mix(colour, WHITE, 0.35), 0.05)
        return
    if mask.kind == "cloth":
        _paint_pattern(cover, mask)
    cover.stroke(_shape("0 .14 .02 .5 0 1.08"), darker(colour), 0.04)


def _paint_pattern(cover: Brush, mask: Mask) -> None:
    for y in (0.38, 0.54, 0.7, 0.86):
        reach = 0.9 - 0.7 * max(0.0, y - 0.6)
        if mask.pattern in ("stripes", "check"):
            cover.stroke(_shape("-1 0 0 .04 1 0", (0, y), (reach, 1)), mask.accent, 0.05)
        elif mask.pattern == "dots":
            for x in np.linspace(-0.8, 0.8, 6) * reach:
                cover.oval(x, y + 0.03, 0.05, 0.04, mask.accent)
    for x in (-0.6, -0.3, 0.3, 0.6) if mask.pattern == "check" else ():
        cover.stroke(_shape("1 .36 .98 .65 .8 .92", scale=(x, 1)), mask.accent, 0.05)


def _paint_glasses(skin: Brush, person: Person) -> None:
    colour = person.glasses_colour
    corners = 1.0 if person.glasses == "round" else 0.45
    rim = np.sign(CIRCLE) * abs(CIRCLE) ** corners
    for side in (-1, 1):
        lens = _moved(rim, (side * 0.42, 0.02), (0.28, 0.1 + 0.11 * corners))
        skin.polygon(lens, WHITE, 45)
        skin.ink.line(skin.pixels(lens), colour, max(2, skin.size_px // 80))
        skin.stroke(_shape(".68 0 .85 -.04 1 -.03", scale=(side, 1)), colour, 0.05)
    skin.stroke(_shape("-.16 0 0 -.04 .16 0"), colour, 0.05)


def _paint_hair(head: Brush, skin: Brush, person: Person) -> None:
    style, volume = person.hair, HAIR_VOLUMES[person.hair]
    colour = person.headwear if style in ("headscarf", "beanie") else person.hair_colour
    line = {"beanie": "bangs", "headscarf": "high", "buzz": "high"}.get(style, person.hairline)
    angle = np.linspace(0, np.pi, 16)
    crown = np.stack([np.cos(angle) * person.width, -np.sin(angle) * 1.02], 1) * volume
    fringe = skin.bend(_spline(6, False) @ _shape(HAIRLINES[line]))
    head.polygon(np.concatenate([crown, fringe]), colour, 140 if style == "buzz" else 255)
    if style == "beanie":
        head.stroke(fringe, darker(colour), 0.3)
    elif style in ("curls", "afro"):
        for x, y in np.concatenate([crown, fringe[3:-3:5]]):
            head.oval(x, y, 0.17, 0.16, colour)
    elif style == "quiff":
        head.blob(_shape("-.6 -.8 -.35 -1.25 .3 -1.3 .65 -.95 .3 -.62 -.3 -.6"), colour)
    elif style == "headscarf":
        for side in (-1, 1):
            drape = ".7 -.5 .86 -.1 .83 .5 .5 1.05 .2 1.25 .8 1.3 1 .6 1 -.2"
            head.blob(_shape(drape, scale=(side, 1)), colour)
    else:
        head.stroke(_shape("-.4 -.85 0 -.97 .35 -.88"), mix(colour, WHITE, 0.25), 0.06, 150)


def _paint_hand(head: Brush, hand: str, side: int) -> None:
    skin, shift = head.person.skin, 0.0 if hand == "mouth" else 0.2
    head.polygon(_shape(".35 1 .85 1 1.2 2.7 .5 2.7", (side * shift, 0), (side, 1)), skin)
    palm = ".15 .55 .6 .55 .85 .8 .8 1.15 .4 1.15 .2 .9"
    head.blob(_shape(palm, (side * shift, 0.1), (side, 1)), skin)
    for finger in range(4):
        fan = (side * 0.03 * finger, 0.13 * finger)
        knuckles = _shape("-.35 .5 0 .5 .45 .62", fan, (side, 1))
        if hand == "cheek":
            fan = (side * 0.12 * finger, 0.05 * finger)
            knuckles = _shape(".6 .1 .6 .4 .62 .85", fan, (side, 1))
        head.stroke(knuckles, darker(skin), 0.19)
        head.stroke(knuckles, skin, 0.15)


def _photograph(image: Image.Image, camera: Camera) -> NDArray[np.uint8]:
    """Apply a camera's effects: blur, uneven light, exposure, tint and sensor noise."""
    if camera.blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur * image.width / 128))
    axis = np.linspace(-1, 1, image.width, dtype=np.float32) * camera.shadow_edge
    across = math.cos(camera.shadow_angle) * axis + math.sin(camera.shadow_angle) * axis[:, None]
    light = camera.contrast * (1 - camera.shadow / (1 + np.exp(-across)))
    grain = np.random.default_rng(camera.noise_seed).standard_normal(light.shape, np.float32)
    grain = grain * camera.noise + camera.brightness
    pixels = np.empty((*light.shape, 3), np.uint8)
    for channel, tint in enumerate((1 + camera.warmth, 1, 1 - camera.warmth)):
        exposed = np.asarray(image.getchannel(channel)) * (light * tint) + grain
        pixels[..., channel] = exposed.clip(0, 255)
    return pixels
