"""Views of a photo: the same again for the same draw, and never more than was said."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask_ray.config import IMAGE_SIZES
from mask_ray.images import augment as augmentation
from mask_ray.images import synthetic
from mask_ray.images.augment import augment
from mask_ray.images.decode import decode_resized

STRENGTHS = (0.3, 1.0, 2.0)
NUM_DRAWS = 200


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@cache
def photo(size: int = 96) -> np.ndarray:
    encoded, _ = synthetic.encode(5)
    image = decode_resized(encoded, size).copy()
    image.flags.writeable = False
    return image


def grey(size: int = 96) -> Image.Image:
    """Every value from 0 to 255, in columns."""
    columns = np.linspace(0, 255, size).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(columns[None, :, None], (size, size, 3)).copy())


def plain(value: int, size: int = 96) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))


class TestAugment:
    @pytest.mark.parametrize("size", IMAGE_SIZES)
    @pytest.mark.parametrize("strength", [0.01, 1, 2])
    def test_gives_pixels_of_the_same_size(self, size: int, strength: float) -> None:
        image = photo(size)
        for seed in range(20):
            view = augment(image, draw(seed), strength)
            assert view.shape == (size, size, 3)
            assert view.dtype == np.uint8

    def test_gives_the_same_view_for_the_same_draw(self) -> None:
        for seed in range(20):
            np.testing.assert_array_equal(
                augment(photo(), draw(seed)), augment(photo(), draw(seed))
            )

    def test_gives_another_view_for_every_other_draw(self) -> None:
        rng = draw(0)
        assert len({augment(photo(), rng).tobytes() for _ in range(50)}) == 50

    def test_without_strength_is_the_image_itself(self) -> None:
        np.testing.assert_array_equal(augment(photo(), draw(0), strength=0), photo())

    def test_leaves_its_input_alone(self) -> None:
        image = photo().copy()
        for seed in range(20):
            augment(image, draw(seed), strength=2)
        np.testing.assert_array_equal(image, photo())

    def test_takes_images_in_any_memory_layout(self) -> None:
        mirrored = photo()[:, ::-1]
        expected = np.ascontiguousarray(mirrored)
        for seed in range(20):
            np.testing.assert_array_equal(
                augment(mirrored, draw(seed)), augment(expected, draw(seed))
            )

    def test_takes_each_costly_step_one_time_in_five(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken: Counter[str] = Counter()

        def counting(name: str) -> Callable[..., Any]:
            def step(image: Any, rng: np.random.Generator, strength: float) -> Any:
                taken[name] += 1
                return image

            return step

        steps = ("_posed", "_occluded", "_lit", "_blurred", "_noisy", "_recompressed")
        for name in steps:
            monkeypatch.setattr(augmentation, name, counting(name))
        rng, image = draw(0), photo()
        for _ in range(2000):
            augment(image, rng)
        assert taken["_posed"] == taken["_lit"] == 2000
        for name in set(steps) - {"_posed", "_lit"}:
            # Within four standard deviations of 400.
            assert abs(taken[name] - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def posed(image: np.ndarray, seed: int, strength: float) -> np.ndarray:
    return augmentation._posed(image, draw(seed), strength)


def centroid(weights: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(weights.shape)
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


class TestPose:
    def test_mirrors_half_of_the_time_and_exactly(self) -> None:
        image = photo()
        num_mirrored = 0
        for seed in range(NUM_DRAWS):
            view = posed(image, seed, strength=1e-9).astype(int)
            upright, mirrored = (np.abs(view - i).max() <= 1 for i in (image, image[:, ::-1]))
            assert upright != mirrored
            num_mirrored += mirrored
        # Within four standard deviations of one half.
        assert abs(num_mirrored - NUM_DRAWS / 2) < 4 * (NUM_DRAWS / 4) ** 0.5

    def test_turns_zooms_and_shifts_as_far_as_it_says(self) -> None:
        """Seen by two dots, one in the centre, the other at a quarter of the side from it."""
        image = np.zeros((192, 192, 3), np.uint8)
        image[92:100, 92:100, 0] = 255
        image[92:100, 140:148, 1] = 255
        moves = []
        for seed in range(NUM_DRAWS):
            view = posed(image, seed, strength=1)
            centre, other = centroid(view[..., 0]), centroid(view[..., 1])
            right, down = other - centre
            turn = np.degrees(np.arctan(down / right))
            shift = np.abs(centre - 95.5).max() / 192
            moves.append((abs(turn), abs(np.log(np.hypot(right, down) / 48)), shift))
        most = np.max(moves, axis=0)
        assert (most <= [20.2, 0.205, 0.081]).all()
        assert (most >= [18, 0.18, 0.07]).all()

    @pytest.mark.parametrize("strength", STRENGTHS)
    @pytest.mark.parametrize("size", [96, 224])
    def test_shows_the_stretched_edge_and_never_black(self, size: int, strength: float) -> None:
        white = np.full((size, size, 3), 255, np.uint8)
        for seed in range(NUM_DRAWS):
            assert posed(white, seed, strength).min() == 255


class TestOcclusion:
    @pytest.mark.parametrize(("strength", "share"), [(0.5, 0.175), (1, 0.35), (2, 0.7)])
    def test_covers_one_rectangle_with_one_colour(self, strength: float, share: float) -> None:
        sides = []
        for seed in range(NUM_DRAWS):
            # No colour that is drawn can be mistaken for what was there.
            image = np.full((96, 96, 3), -1, int)
            covered = augmentation._occluded(image, draw(seed), strength)[..., 0] >= 0
            rows, columns = covered.any(axis=1), covered.any(axis=0)
            np.testing.assert_array_equal(covered, np.outer(rows, columns))
            assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
            assert np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
            assert len(np.unique(image[covered], axis=0)) == 1
            sides += [rows.mean(), columns.mean()]
        assert 0.9 * share < max(sides) <= share
        assert min(sides) >= 0.2 * share - 1 / 96


class TestLight:
    @pytest.mark.parametrize("strength", STRENGTHS)
    def test_changes_values_but_neither_their_order_nor_their_place(self, strength: float) -> None:
        changed = 0
        for seed in range(NUM_DRAWS):
            lit = np.asarray(augmentation._lit(grey(), draw(seed), strength)).astype(int)
            assert (lit == lit[:1]).all()
            assert (np.diff(lit, axis=1) >= 0).all()
            changed += (lit != np.asarray(grey())).any()
        assert changed == NUM_DRAWS

    def test_is_brighter_as_often_as_darker_and_of_every_tint(self) -> None:
        means = np.array(
            [
                np.asarray(augmentation._lit(plain(128), draw(seed), 1))[0, 0]
                for seed in range(NUM_DRAWS)
            ]
        ).astype(int)
        num_brighter = (means.mean(axis=1) > 128).sum()
        assert abs(num_brighter - NUM_DRAWS / 2) < 4 * (NUM_DRAWS / 4) ** 0.5
        assert set(means.argmax(axis=1)) == {0, 1, 2}


def detail(picture: Any) -> float:
    """How much neighbours differ."""
    return float(np.abs(np.diff(np.asarray(picture).astype(int), axis=1)).mean())


class TestLensSensorAndFile:
    def test_blur_takes_detail_and_leaves_the_light(self) -> None:
        sharp = Image.fromarray(draw(0).integers(0, 256, (96, 96, 3), np.uint8))
        for seed in range(50):
            blurred = augmentation._blurred(sharp, draw(seed), 1)
            assert detail(blurred) < detail(sharp)
            assert np.asarray(blurred).mean() == pytest.approx(np.asarray(sharp).mean(), abs=1)

    def test_blur_is_wider_where_there_are_more_pixels(self) -> None:
        """The same share of the picture at every size."""
        edges = [grey_step(size) for size in (96, 192)]
        widths = [
            (np.diff(np.asarray(augmentation._blurred(edge, draw(0), 2))[0, :, 0]) != 0).sum()
            for edge in edges
        ]
        assert widths[1] > 1.5 * widths[0]

    @pytest.mark.parametrize("strength", [0.5, 1, 2])
    def test_noise_is_on_every_pixel_and_of_no_colour(self, strength: float) -> None:
        deviations = []
        for seed in range(50):
            noisy = augmentation._noisy(plain(128), draw(seed), strength)
            difference = np.asarray(noisy).astype(int) - 128
            # What is cut off after the decimal point is half a level.
            assert abs(difference.mean() + 0.5) < 0.05 * 16 * strength
            deviations.append(difference.std())
        assert 0.2 * 16 * strength < min(deviations) + 0.5
        assert 0.8 * 16 * strength < max(deviations) < 1.05 * 16 * strength

    @pytest.mark.parametrize("strength", STRENGTHS)
    def test_recompression_changes_pixels_a_little(self, strength: float) -> None:
        picture = Image.fromarray(photo())
        for seed in range(50):
            saved = np.asarray(augmentation._recompressed(picture, draw(seed), strength))
            difference = np.abs(saved.astype(int) - photo())
            assert difference.any()
            assert difference.mean() < 8


def grey_step(size: int) -> Image.Image:
    """Dark on the left, bright on the right."""
    image = np.full((size, size, 3), 50, np.uint8)
    image[:, size // 2 :] = 200
    return Image.fromarray(image)
