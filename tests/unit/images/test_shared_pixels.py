import os
from collections.abc import Iterator

import numpy as np
import pytest

from mask_ray.images import shared_pixels
from mask_ray.images.shared_pixels import SharedPixels, joined, needed_bytes

SIZES = (4, 4, 4, 2)


@pytest.fixture
def pixels() -> Iterator[SharedPixels]:
    memory = shared_pixels.create(needed_bytes(SIZES))
    yield SharedPixels(memory)
    os.close(memory)


def test_pixels_that_one_writes_another_reads() -> None:
    memory = shared_pixels.create(needed_bytes(SIZES))
    ours, theirs = SharedPixels(memory), SharedPixels(memory)
    os.close(memory)
    for number, place in enumerate(theirs.places(SIZES), 1):
        place[:] = number
    theirs.num_done = 4
    assert ours.num_done == 4
    places = ours.places(SIZES)
    assert [place.shape for place in places] == [(size, size, 3) for size in SIZES]
    assert [{*place.flat} for place in places] == [{1}, {2}, {3}, {4}]


def test_systems_without_sealed_memory_use_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    test_pixels_that_one_writes_another_reads()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux seals memory")
def test_no_process_can_change_the_size_of_the_memory() -> None:
    memory = shared_pixels.create(4_096)
    try:
        for num_bytes in (0, 8_192):
            with pytest.raises(OSError):
                os.ftruncate(memory, num_bytes)
    finally:
        os.close(memory)


def test_neighbours_are_joined_without_a_copy(pixels: SharedPixels) -> None:
    places = pixels.places(SIZES)
    for number, place in enumerate(places):
        place[:] = number
    for images in (places[:3], places[1:3], places[:1]):
        batch = joined(images)
        assert np.array_equal(batch, np.stack(images))
        assert np.shares_memory(batch, images[0])


def test_others_are_stacked(pixels: SharedPixels) -> None:
    places = pixels.places(SIZES)
    for number, place in enumerate(places):
        place[:] = number
    another = np.full((4, 4, 3), 9, np.uint8)
    for images in ([places[0], places[2]], [places[1], places[0]], [places[0], another]):
        batch = joined(images)
        assert np.array_equal(batch, np.stack(images))
        assert not np.shares_memory(batch, images[0])
    with pytest.raises(ValueError):
        joined(places[2:])
