"""What each worker sees in an epoch: its own rows, all rows among them, in an order of its own."""

import zlib
from typing import Any

import numpy as np
import pytest
import ray

from mask_ray.images.augment import augment
from mask_ray.training.batches import (
    Batch,
    ImageBatches,
    augmented,
)
from mask_ray.training.shared_state import start_shared_state


def rows_of(batches: Any) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


SIZE = 16
IMAGES = np.random.default_rng(4).integers(0, 256, (50, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def images(ray_local: None) -> ray.data.Dataset:
    """Fifty images; the label tells which."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = [{"image": image, "label": label} for label, image in enumerate(IMAGES)]
    return ray.data.from_items(rows, override_num_blocks=3).materialize()


def views_in(dataset: ray.data.Dataset) -> np.ndarray:
    """By label."""
    rows = sorted(dataset.take_all(), key=lambda row: row["label"])
    assert [row["label"] for row in rows] == list(range(len(IMAGES)))
    return np.stack([row["image"] for row in rows])


class TestImages:
    def test_are_seen_in_one_view_an_epoch(self, images: ray.data.Dataset) -> None:
        shared = start_shared_state()
        dataset = augmented(images, strength=1, seed=3, shared=shared, task_cpus=0.5)
        views = []
        for number in (0, 1, 0):
            ray.get(shared.set_epoch.remote(number))
            views.append(views_in(dataset))
        np.testing.assert_array_equal(views[0], views[2])
        differs = (views[0] != views[1]).any(axis=(1, 2, 3))
        assert differs.all()

    def test_are_seen_as_seed_epoch_and_pixels_say(self, images: ray.data.Dataset) -> None:
        shared = start_shared_state()
        ray.get(shared.set_epoch.remote(7))
        views = views_in(augmented(images, strength=0.5, seed=3, shared=shared, task_cpus=0.5))
        expected = [
            augment(image, np.random.default_rng([3, 7, zlib.crc32(image.tobytes())]), 0.5)
            for image in IMAGES
        ]
        np.testing.assert_array_equal(views, expected)

    def test_are_seen_as_they_are_without_augmentation(self, images: ray.data.Dataset) -> None:
        dataset = augmented(images, strength=0, seed=0, shared=start_shared_state(), task_cpus=0.5)
        np.testing.assert_array_equal(views_in(dataset), IMAGES)

    def test_come_in_batches_in_another_order_and_view_every_epoch(
        self, images: ray.data.Dataset
    ) -> None:
        shared = start_shared_state()
        train = augmented(images, strength=1, seed=0, shared=shared, task_cpus=0.5).iterator()
        source = ImageBatches(train, images.iterator(), shared, rank=0, seed=0)
        first, second, again = (list(source.train(number, 16)) for number in (0, 1, 0))
        for batches in (first, second, again):
            assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
            assert all(pixels.dtype == np.uint8 for pixels, _ in batches)
            assert sorted(rows_of(batches)) == list(range(len(IMAGES)))
        assert rows_of(first) == rows_of(again) != rows_of(second)
        np.testing.assert_array_equal(by_label(first), by_label(again))
        assert (by_label(first) != by_label(second)).any(axis=(1, 2, 3)).all()

    def test_to_validate_on_are_as_they_are(self, images: ray.data.Dataset) -> None:
        source = ImageBatches(None, images.iterator(), None, rank=0, seed=0)
        np.testing.assert_array_equal(by_label(list(source.val())), IMAGES)


def by_label(batches: list[Batch]) -> np.ndarray:
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return pixels[np.argsort(labels)]
