import io
import random
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, ImageFile

from mask_ray.config import ImageFormat, ImageLimits
from mask_ray.images.decode import decode, decode_resized
from mask_ray.images.errors import (
    ImageError,
    ImageFormatError,
    ImageTooCostlyError,
    ImageTooLargeError,
)
from tests.support import image_files

PICTURE = np.asarray(image_files.picture())
JPEG_TOLERANCE = 4


def assert_same_picture(pixels: np.ndarray, expected: np.ndarray, tolerance: int = 0) -> None:
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("image_format", image_files.ACCEPTED_FORMATS)
def test_every_accepted_format_decodes_to_the_picture(image_format: str) -> None:
    tolerance = JPEG_TOLERANCE if image_format in image_files.LOSSY_FORMATS else 0
    assert_same_picture(decode(image_files.in_format(image_format)), PICTURE, tolerance)


@pytest.mark.parametrize(
    "make",
    [
        lambda: image_files.jpeg(progressive=True),
        image_files.cmyk_jpeg,
        image_files.multi_picture_jpeg,
        image_files.animated_gif,
        lambda: image_files.png(image_files.picture().convert("RGBA")),
        lambda: image_files.png(image_files.picture().convert("P")),
        lambda: image_files.bmp(image_files.picture().convert("P")),
        lambda: image_files.webp(save_all=True, append_images=[image_files.picture(seed=1)]),
        lambda: image_files.avif(save_all=True, append_images=[image_files.picture(seed=1)]),
        lambda: image_files.avif(image_files.picture().convert("RGBA")),
        lambda: image_files.tiff(compression="tiff_lzw"),
        lambda: image_files.tiff(compression="tiff_adobe_deflate"),
        lambda: image_files.tiff(compression="packbits"),
        lambda: image_files.tiff(compression="jpeg", quality=95),
        lambda: image_files.tiff(image_files.picture().convert("P")),
        lambda: image_files.tiff(image_files.picture().convert("RGBA")),
        lambda: image_files.tiff(image_files.picture().convert("CMYK")),
        lambda: image_files.tiff(image_files.picture().convert("YCbCr")),
        lambda: image_files.tiff(save_all=True, append_images=[image_files.picture(seed=1)]),
        image_files.rle_bmp,
    ],
    ids=[
        *("progressive", "cmyk", "mpo", "animated gif", "rgba", "palette", "bmp palette", "webp"),
        *("animated avif", "avif rgba", "lzw", "deflate", "packbits", "jpeg in tiff"),
        *("tiff palette", "tiff rgba", "tiff cmyk", "tiff ycbcr", "tiff pages", "bmp runs"),
    ],
)
def test_every_way_to_store_the_picture_decodes_to_it(make: Callable[[], bytes]) -> None:
    encoded = make()
    tolerance = 0 if encoded[:2] in (b"BM", b"GI", b"RI", b"\x89P") else JPEG_TOLERANCE
    assert_same_picture(decode(encoded), PICTURE, tolerance)


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


def _bits(pixels: np.ndarray, shifts: tuple[int, int, int], kept: tuple[int, int, int]) -> bytes:
    """A row of pixels in 16 bits each."""
    parts = zip(pixels.T.astype(int), shifts, kept, strict=True)
    return np.sum([(c >> 8 - bits) << by for c, by, bits in parts], axis=0).astype("<u2").tobytes()


class TestBMP:
    ROWS = np.random.default_rng(0).integers(0, 256, (6, 13, 3)).astype(np.uint8)

    @pytest.mark.parametrize("header_bytes", [12, 40, 64, 108, 124])
    def test_24_bits(self, header_bytes: int) -> None:
        rows = [row[:, ::-1].tobytes() for row in self.ROWS]
        encoded = image_files.stored_bmp(rows, 24, width=13, header_bytes=header_bytes)
        assert (decode(encoded) == self.ROWS).all()

    def test_from_the_top(self) -> None:
        rows = [row[:, ::-1].tobytes() for row in self.ROWS]
        encoded = image_files.stored_bmp(rows, 24, width=13, is_top_down=True)
        assert (decode(encoded) == self.ROWS).all()

    @pytest.mark.parametrize(
        ("shifts", "kept", "masks"),
        [((10, 5, 0), (5, 5, 5), ()), ((11, 5, 0), (5, 6, 5), (0xF800, 0x7E0, 0x1F))],
    )
    def test_16_bits(self, shifts: Any, kept: Any, masks: tuple[int, ...]) -> None:
        rows = [_bits(row, shifts, kept) for row in self.ROWS]
        stored_as = 3 if masks else 0
        encoded = image_files.stored_bmp(rows, 16, width=13, stored_as=stored_as, masks=masks)
        assert_same_picture(decode(encoded), self.ROWS, 7)

    @pytest.mark.parametrize("alpha", [0, 255])
    @pytest.mark.parametrize("is_masked", [True, False])
    def test_32_bits_of_which_none_or_all_is_alpha(self, alpha: int, is_masked: bool) -> None:
        filled = np.full((6, 13, 1), alpha, np.uint8)
        rows = [row.tobytes() for row in np.concatenate([self.ROWS[..., ::-1], filled], axis=2)]
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000) if is_masked else ()
        encoded = image_files.stored_bmp(
            rows, 32, width=13, header_bytes=124, stored_as=3 if is_masked else 0, masks=masks
        )
        assert (decode(encoded) == self.ROWS).all()

    def test_runs_of_half_bytes(self) -> None:
        rows = [bytes((13, 0x12)), bytes((6, 0x33, 7, 0x12))]
        palette = bytes(range(64))
        encoded = image_files.stored_bmp(rows, 4, width=13, stored_as=2, palette=palette)
        assert decode(encoded)[1, :, 0].tolist() == [14] * 6 + [6, 10] * 3 + [6]

    def test_a_picture_of_runs_that_would_take_seconds_is_refused(self) -> None:
        encoded = bytearray(image_files.rle_bmp())
        encoded[18:26] = struct.pack("<2i", 9_000, 9_000)
        with pytest.raises(ImageTooCostlyError, match="9000 x 9000 pixels, run-length encoded"):
            decode(bytes(encoded))


class TestHEIC:
    def test_is_named_with_what_reads_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ImageFormat, "is_readable", property(lambda it: it.name != "HEIC"))
        message = (
            r"^image is HEIC, which needs pillow-heif \(uv sync --extra heic, or pip install "
            r"pillow-heif\); JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are accepted$"
        )
        with pytest.raises(ImageFormatError, match=message):
            decode(image_files.heic_header())

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_decodes_where_that_is_installed(self, orientation: int) -> None:
        pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
        turn = Image.Transpose.ROTATE_90
        stored = image_files.picture().transpose(turn) if orientation == 6 else None
        file = pillow_heif.from_pillow(stored or image_files.picture())
        buffer = io.BytesIO()
        file.save(buffer, quality=-1, chroma=444, exif=image_files.exif_orientation(orientation))
        assert_same_picture(decode(buffer.getvalue()), PICTURE, JPEG_TOLERANCE)


@pytest.mark.parametrize("brand", [b"mif1", b"avif"])
def test_avif_is_recognised_by_the_brands_that_it_is_compatible_with(brand: bytes) -> None:
    encoded = image_files.avif()
    assert_same_picture(decode(encoded[:8] + brand + encoded[12:]), PICTURE, JPEG_TOLERANCE)
