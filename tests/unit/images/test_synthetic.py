"""Properties of the drawn data set that training relies on."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mask_ray.images import synthetic
from mask_ray.images.synthetic import CLASS_NAMES, draw, encode, paint, sample

MASKED, BARE = range(0, 60, 2), range(1, 60, 2)


def test_an_image_is_rgb_of_the_size_asked_for() -> None:
    for image_size in (96, 128, 224):
        image, _ = draw(3, image_size=image_size)
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8


def test_the_same_seed_and_index_draw_the_same_image() -> None:
    for index in range(10):
        assert np.array_equal(draw(index, seed=4)[0], draw(index, seed=4)[0])


def test_an_image_does_not_depend_on_what_was_drawn_before() -> None:
    forwards = {index: encode(index) for index in range(12)}
    backwards = {index: encode(index) for index in reversed(range(12))}
    assert forwards == backwards


def test_no_two_images_are_alike() -> None:
    files = {encode(index, seed=seed)[0] for seed in range(3) for index in range(40)}
    assert len(files) == 3 * 40


def test_classes_are_balanced_and_named() -> None:
    labels = [draw(index)[1] for index in range(40)]
    assert labels.count(0) == labels.count(1) == 20
    assert [encode(index)[1] for index in range(2)] == ["with_mask", "without_mask"]
    assert [CLASS_NAMES[label] for label in labels] == [encode(index)[1] for index in range(40)]


@pytest.mark.parametrize("image_size", [96, 160])
def test_an_encoded_image_is_the_drawn_one_as_a_jpeg(image_size: int) -> None:
    for index in range(8):
        encoded, _ = encode(index, image_size=image_size)
        with Image.open(io.BytesIO(encoded)) as image:
            assert image.format == "JPEG"
            decoded = np.asarray(image.convert("RGB"), float)
        drawn, _ = draw(index, image_size=image_size)
        assert decoded.shape == drawn.shape
        assert np.abs(decoded - drawn).mean() < 10


def test_a_worn_mask_hides_nose_and_mouth() -> None:
    for index in MASKED:
        assert _changed_by_another_nose_and_mouth(sample(index)) == 0, f"image {index}"


def test_without_a_mask_nose_and_mouth_show() -> None:
    bare_faced = [portrait for portrait in map(sample, BARE) if portrait.hand != "mouth"]
    assert len(bare_faced) > 20
    assert all(_changed_by_another_nose_and_mouth(portrait) > 20 for portrait in bare_faced)


def test_taking_a_mask_off_changes_the_lower_face_and_leaves_the_eyes() -> None:
    for index in MASKED:
        portrait = _clear(replace(sample(index), hand="none"))
        portrait = replace(portrait, person=replace(portrait.person, glasses="none", tilt=0.0))
        masked, bare = paint(portrait, 128), paint(replace(portrait, mask=None), 128)
        rows, columns = np.nonzero((masked != bare).any(axis=2))
        eyes_y, mouth_y = _row(portrait, 0.0), _row(portrait, 0.65)
        assert _row(portrait, -0.15) <= rows.min(), f"image {index}"
        assert rows.min() < (eyes_y + mouth_y) / 2
        assert np.ptp(columns[rows == mouth_y]) > 0.7 * portrait.person.scale * 128


def test_hard_cases_occur_among_faces_without_a_mask() -> None:
    portraits = [sample(index) for index in range(1, 400, 2)]
    assert {portrait.hand for portrait in portraits} == {"none", "mouth", "cheek"}
    lowered = [portrait for portrait in portraits if portrait.mask]
    assert 10 < len(lowered) < 100
    assert all(portrait.mask.under_chin for portrait in lowered if portrait.mask)
    assert any(portrait.scene.scarf for portrait in portraits)
    assert {"full", "stubble", "moustache"} <= {portrait.person.beard for portrait in portraits}


def test_every_face_with_a_mask_wears_it() -> None:
    masks = [sample(index).mask for index in range(0, 400, 2)]
    assert all(mask is not None and not mask.under_chin for mask in masks)
    assert {mask.kind for mask in masks if mask} == {"surgical", "cloth", "ffp2"}


def _clear(portrait: synthetic.Portrait) -> synthetic.Portrait:
    """The portrait as a perfect camera in even light would take it."""
    camera = replace(portrait.camera, blur=0, noise=0, shadow=0, brightness=0, contrast=1, warmth=0)
    return replace(portrait, camera=camera)


def _changed_by_another_nose_and_mouth(portrait: synthetic.Portrait) -> int:
    portrait = _clear(portrait)
    person = portrait.person
    other = replace(
        person,
        nose=0.8 if person.nose > 1 else 1.25,
        smile=-0.04 if person.smile > 0.03 else 0.1,
        mouth_open=0.0 if person.mouth_open > 0.08 else 0.16,
    )
    changed = paint(portrait, 128) != paint(replace(portrait, person=other), 128)
    return int(changed.any(axis=2).sum())


def _row(portrait: synthetic.Portrait, y: float) -> int:
    """The row of a 128-pixel image at height `y` of an upright face."""
    return round((portrait.person.y + y * portrait.person.scale) * 128)
