"""The pixels of a decoded image: channels, alpha, orientation, size."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mask_ray.images.decode import decode, decode_resized
from mask_ray.images.errors import ImageError
from tests.support import image_files
from tests.support.pictures import JPEG_TOLERANCE, PICTURE, assert_same_picture


@pytest.mark.parametrize("image_format", image_files.ACCEPTED_FORMATS)
def test_gray_images_get_three_equal_channels(image_format: str) -> None:
    gray = image_files.picture().convert("L")
    pixels = decode(image_files.in_format(image_format, gray))
    expected = np.asarray(gray)[..., None].repeat(3, axis=2)
    is_lossy = image_format in image_files.LOSSY_FORMATS
    assert_same_picture(pixels, expected, JPEG_TOLERANCE if is_lossy else 0)


def test_a_single_pixel_decodes() -> None:
    pixels = decode(image_files.one_pixel((200, 30, 90)))
    assert pixels.tolist() == [[[200, 30, 90]]]
    assert (decode_resized(image_files.one_pixel((200, 30, 90)), 8) == [200, 30, 90]).all()


def test_16_bit_gray_is_scaled_to_8_bits_not_clipped() -> None:
    expected = (image_files.gray16() >> 8)[..., None].repeat(3, axis=2).astype(np.uint8)
    assert_same_picture(decode(image_files.gray16_png()), expected)


def test_16_bit_colour_is_scaled_to_8_bits() -> None:
    row = np.array([0x0000, 0x80FF, 0xFFFF, 0x1234, 0x0100, 0x00FF], dtype=">u2").tobytes()
    encoded = image_files.raw_png(2, 1, 16, 2, [row])
    assert decode(encoded).tolist() == [[[0x00, 0x80, 0xFF], [0x12, 0x01, 0x00]]]


def test_one_bit_images_are_black_and_white() -> None:
    encoded = image_files.png(Image.fromarray(np.array([[True, False]])))
    assert decode(encoded).tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_palette_transparency_is_flattened_onto_white() -> None:
    pixels = decode(image_files.palette_png_with_transparency())
    assert pixels.tolist() == [[[255, 0, 0], [127, 127, 127], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("make", [image_files.png, image_files.webp])
def test_alpha_is_flattened_onto_white(mode: str, make: Callable[..., bytes]) -> None:
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (*[0] * (len(mode) - 1), alpha))
    assert decode(make(image))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize(
    ("bit_depth", "colour_type", "row", "key"),
    [
        (1, 0, b"\x40", b"\0\x01"),
        (2, 0, b"\x30", b"\0\x03"),
        (4, 0, b"\x07", b"\0\x07"),
        (8, 0, b"\x00\x55", b"\0\x55"),
        (16, 0, b"\x00\x00\x55\x66", b"\x55\x66"),
        (8, 2, b"\0\0\0\1\2\3", b"\0\1\0\2\0\3"),
        (16, 2, bytes(6) + b"\x11\x22\x33\x44\x55\x66", b"\x11\x22\x33\x44\x55\x66"),
    ],
)
def test_the_transparent_colour_of_a_png_turns_white(
    bit_depth: int, colour_type: int, row: bytes, key: bytes
) -> None:
    encoded = image_files.raw_png(2, 1, bit_depth, colour_type, [row], (b"tRNS", key))
    assert decode(encoded).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_a_transparent_gif_is_flattened_onto_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    encoded = image_files.encode(image, "GIF", transparency=1)
    assert decode(encoded).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turned = decode(image_files.exif_rotated_jpeg(orientation))
    assert_same_picture(turned, decode(image_files.upright_jpeg()))


@pytest.mark.parametrize(
    "make",
    [
        image_files.png,
        image_files.webp,
        image_files.avif,
        image_files.tiff,
        lambda image, exif: image_files.tiff(image, exif=exif, compression="tiff_lzw"),
    ],
)
def test_exif_orientation_is_applied_outside_jpeg(make: Callable[..., bytes]) -> None:
    stored = image_files.picture().transpose(Image.Transpose.ROTATE_90)
    encoded = make(stored, exif=image_files.exif_orientation(6))
    tolerance = JPEG_TOLERANCE if make is image_files.avif else 0
    assert_same_picture(decode(encoded), PICTURE, tolerance)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("make", [image_files.jpeg, image_files.png, image_files.webp])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        image_files.exif_orientation(1)[:-8],
        image_files.exif_orientation(99),
    ],
)
def test_malformed_exif_is_ignored(make: Callable[..., bytes], exif: bytes) -> None:
    tolerance = JPEG_TOLERANCE if make is image_files.jpeg else 0
    assert_same_picture(decode(make(exif=exif)), PICTURE, tolerance)


@pytest.mark.parametrize("size", [(640, 480), (448, 1600), (1792, 1792), (225, 3000), (64, 48)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_shrinks_while_decoding_but_never_below_at_least_px(
    size: tuple[int, int], orientation: int
) -> None:
    image = Image.new("RGB", size, "teal")
    exif = image_files.exif_orientation(orientation)
    pixels = decode(image_files.jpeg(image, exif=exif), at_least_px=224)
    sides = sorted(pixels.shape[:2])
    shrunk_by = max(s for s in (1, 2, 4, 8) if s == 1 or min(size) // s >= 224)
    assert sides == sorted(-(-side // shrunk_by) for side in size)


def test_without_at_least_px_a_jpeg_keeps_its_size() -> None:
    image = image_files.picture(1600, 1200)
    assert_same_picture(decode(image_files.jpeg(image)), np.asarray(image), JPEG_TOLERANCE)


@pytest.mark.parametrize("size", [(64, 48), (1600, 1200), (8, 800)])
@pytest.mark.parametrize("image_format", image_files.ACCEPTED_FORMATS)
def test_resized_images_are_the_whole_picture_stretched(
    image_format: str, size: tuple[int, int]
) -> None:
    down, across = np.indices(size[::-1]) / np.array(size[::-1])[:, None, None]
    brightness = (255 * (0.8 * down + 0.2 * across)).astype(np.uint8)
    pixels = decode_resized(image_files.in_format(image_format, Image.fromarray(brightness)), 96)
    down, across = np.indices((96, 96)) / 96
    expected = (255 * (0.8 * down + 0.2 * across)).astype(np.uint8)
    assert_same_picture(pixels, expected[..., None].repeat(3, axis=2), 16)


def test_resizing_averages_rather_than_samples() -> None:
    checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
    pixels = decode_resized(image_files.png(Image.fromarray(checkers.astype(np.uint8))), 32)
    assert_same_picture(pixels, np.full((32, 32, 3), 127, np.uint8), 2)


def test_threads_get_their_own_answers() -> None:
    files = [
        image_files.in_format(image_format, image_files.picture(seed=seed))
        for seed in range(8)
        for image_format in image_files.ACCEPTED_FORMATS
    ]
    alone = [decode(encoded) for encoded in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, files * 5))
    for number, pixels in enumerate(together):
        assert (pixels == alone[number % len(files)]).all()


def test_pillows_global_settings_are_left_alone() -> None:
    def settings() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = settings()
    decode_resized(image_files.jpeg(), 96)
    for rejected in (image_files.truncated_jpeg(), image_files.png_claiming()):
        with pytest.raises(ImageError):
            decode(rejected)
    assert settings() == before


def test_real_photos_decode(shared: Path) -> None:
    wild = shared / "data" / "wild"
    photos = sorted(path for path in wild.rglob("*") if path.is_file())[::6]
    assert photos
    for photo in photos:
        try:
            pixels = decode_resized(photo.read_bytes(), 96)
        except ImageError:
            continue
        assert pixels.shape == (96, 96, 3)
        assert pixels.std() > 1
