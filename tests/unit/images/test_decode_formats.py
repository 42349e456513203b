"""Every accepted format, and every way in which a file may store the picture."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask_ray.config import ImageFormat
from mask_ray.images.decode import decode
from mask_ray.images.errors import ImageFormatError, ImageTooCostlyError
from tests.support import image_files
from tests.support.pictures import JPEG_TOLERANCE, PICTURE, assert_same_picture


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
