"""Files that are no image, too large, cut short or corrupt."""

import random
import warnings
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mask_ray.config import ImageLimits
from mask_ray.images.decode import decode, decode_resized
from mask_ray.images.errors import ImageError, ImageFormatError, ImageTooLargeError
from tests.support import image_files


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (bytes, ImageError, "image is empty: got 0 bytes; JPEG, PNG, WebP, GIF, BMP, TIFF"),
        (image_files.text, ImageError, "not an image: got 33 bytes of another kind"),
        (lambda: b"BMW builds cars", ImageError, "not an image: got 15 bytes of another kind"),
        (lambda: b"\xff\xd8\xff", ImageError, "JPEG image is truncated or corrupt: "),
        (lambda: b"GIF89a", ImageError, "GIF image is truncated or corrupt: "),
        (lambda: b"RIFF\0\0\0\0WEBPVP8 ", ImageError, "WebP image is truncated or corrupt: "),
        (image_files.truncated_jpeg, ImageError, "JPEG image is truncated or corrupt: "),
        (image_files.truncated_png, ImageError, "PNG image is truncated or corrupt: "),
        (image_files.jpeg_of_many_scans, ImageError, "JPEG image has 30.. scans; at most 100"),
        (image_files.psd, ImageFormatError, "image is PSD; JPEG, PNG, WebP, GIF, BMP, TIFF"),
        (lambda: b"II+\0" + bytes(64), ImageFormatError, "image is BigTIFF; "),
        (
            lambda: image_files.tiff(compression="lzma"),
            ImageFormatError,
            "image is a TIFF of compression 34925; none, CCITT, G3, G4, LZW, JPEG, deflate, Pack",
        ),
        (
            lambda: image_files.tiff(image_files.picture().convert("F")),
            ImageFormatError,
            "image is a TIFF of 32 bits a sample",
        ),
        (
            lambda: image_files.tiff(tiffinfo={254: 1}),
            ImageFormatError,
            "image is a camera's raw file; save it as JPEG",
        ),
        (image_files.ico, ImageFormatError, "image is ICO; "),
        (image_files.svg, ImageFormatError, "image is SVG; "),
        (lambda: image_files.encode(image_files.picture(), "PPM"), ImageFormatError, "is Netpbm"),
        (
            lambda: image_files.encode(image_files.picture(), "JPEG2000"),
            ImageFormatError,
            "image is JPEG 2000; ",
        ),
        (
            image_files.too_many_bytes,
            ImageTooLargeError,
            "image has 27262976 bytes; at most 26214400 are allowed",
        ),
    ],
)
def test_what_is_not_an_accepted_image_is_refused_by_name(
    make: Callable[[], bytes], error: type[ImageError], message: str
) -> None:
    for refused_by in (decode, lambda encoded: decode_resized(encoded, 96)):
        with pytest.raises(ImageError, match=message) as caught:
            refused_by(make())
        assert caught.type is error


@pytest.mark.parametrize(
    "claiming",
    [
        image_files.jpeg_claiming,
        image_files.png_claiming,
        image_files.webp_claiming,
        image_files.gif_claiming,
        image_files.bmp_claiming,
        image_files.tiff_claiming,
        image_files.avif_claiming,
    ],
)
@pytest.mark.parametrize("side", [11_000, 50_000])
def test_too_many_pixels_are_refused_from_the_header(
    claiming: Callable[[int, int], bytes], side: int
) -> None:
    message = f"^image has {side} x {side} = {side * side} pixels; at most 109000000 are allowed$"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match=message):
            decode(claiming(side, side))


def test_very_long_images_are_refused_from_the_header() -> None:
    message = "image has 1 x 65536 pixels; at most 65535 a side are allowed"
    with pytest.raises(ImageTooLargeError, match=message):
        decode(image_files.png_claiming(1, 65536))


def test_limits_are_the_callers() -> None:
    encoded = image_files.png()
    assert decode(encoded, ImageLimits(max_image_pixels=64 * 48)).shape == (48, 64, 3)
    with pytest.raises(ImageTooLargeError, match="64 x 48 = 3072 pixels; at most 3071 are"):
        decode(encoded, ImageLimits(max_image_pixels=64 * 48 - 1))
    assert decode(encoded, ImageLimits(max_image_bytes=len(encoded))).shape == (48, 64, 3)
    with pytest.raises(ImageTooLargeError, match=f"has {len(encoded)} bytes; at most "):
        decode(encoded, ImageLimits(max_image_bytes=len(encoded) - 1))


def test_limits_may_exceed_those_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for image_format in ("JPEG", "PNG", "GIF", "BMP"):
        assert decode(image_files.in_format(image_format)).shape == (48, 64, 3)


@pytest.mark.parametrize("image_format", image_files.ACCEPTED_FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.25, 0.5, 0.75, 0.95])
def test_truncated_files_are_refused(image_format: str, kept: float) -> None:
    encoded = image_files.in_format(image_format, image_files.picture(320, 240))
    with pytest.raises(ImageError, match=r"truncated or corrupt|not an image"):
        decode(image_files.truncated(encoded, kept))


def corruptions(encoded: bytes, count: int, seed: int) -> list[bytes]:
    """Random byte flips, every third time cut short as well."""
    chance = random.Random(seed)
    corrupted = []
    for number in range(count):
        body = bytearray(encoded)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            # Half of them in the header, where the parsers are.
            last = min(64, len(body)) if chance.random() < 0.5 else len(body)
            body[chance.randrange(last)] = chance.randrange(256)
        corrupted.append(bytes(body[: chance.randrange(len(body))] if number % 3 == 0 else body))
    return corrupted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make",
    [
        image_files.exif_rotated_jpeg,
        lambda: image_files.jpeg(progressive=True),
        image_files.cmyk_jpeg,
        image_files.png,
        image_files.gray16_png,
        image_files.palette_png_with_transparency,
        image_files.webp,
        lambda: image_files.webp(lossless=False, exif=image_files.exif_orientation(6)),
        image_files.animated_gif,
        image_files.bmp,
        image_files.rle_bmp,
        image_files.tiff,
        lambda: image_files.tiff(compression="tiff_lzw"),
        lambda: image_files.tiff(compression="jpeg"),
        image_files.avif,
        lambda: image_files.bmp(image_files.picture().convert("P")),
    ],
)
def test_corrupt_files_give_pixels_or_an_image_error(make: Callable[[], bytes], seed: int) -> None:
    limits = ImageLimits(max_image_pixels=1_000_000)
    for encoded in corruptions(make(), 40, seed):
        try:
            pixels = decode_resized(encoded, 32, limits)
        except ImageError as error:
            assert len(str(error)) > 20
        else:
            assert pixels.shape == (32, 32, 3)
            assert pixels.dtype == np.uint8


class TestWithoutItsEnd:
    """A JPEG that lacks the marker of its end: accepted exactly if the picture is whole."""

    FILES: ClassVar = {
        "baseline": image_files.jpeg(),
        "halved colours": image_files.jpeg(subsampling=2),
        "progressive": image_files.jpeg(progressive=True),
        "restarts": image_files.jpeg(restart_marker_rows=1),
        "cmyk": image_files.cmyk_jpeg(),
        "turned": image_files.exif_rotated_jpeg(6),
    }

    @pytest.mark.parametrize("kind", FILES)
    @pytest.mark.parametrize("num_missing", [1, 2])
    def test_a_whole_picture_is_decoded(self, kind: str, num_missing: int) -> None:
        whole = self.FILES[kind]
        assert (decode(whole[:-num_missing]) == decode(whole)).all()
        assert (decode_resized(whole[:-2] + bytes(99), 24) == decode_resized(whole, 24)).all()

    @pytest.mark.parametrize("kind", FILES)
    @pytest.mark.parametrize("kept", [0.5, 0.7, 0.9, 0.97])
    def test_missing_lines_are_refused(self, kind: str, kept: float) -> None:
        with pytest.raises(ImageError, match="JPEG image is truncated or corrupt"):
            decode(image_files.truncated(self.FILES[kind], kept))
