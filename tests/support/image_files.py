"""Encoded images, good and bad, made on the spot.

The picture is blocks of 8 x 8 px in 216 colours: flat within a JPEG block, so that JPEG keeps it
nearly exactly however it is turned, and few enough colours that a palette holds them all.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

BLOCK_PX = 8
ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Those that keep the picture within some levels.
LOSSY_FORMATS = ("JPEG", "AVIF")


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """An RGB picture without any symmetry. Sides must be multiples of 8."""
    blocks_shape = (height // BLOCK_PX, width // BLOCK_PX, 3)
    blocks = np.random.default_rng(seed).integers(0, 6, blocks_shape) * 51
    pixels = blocks.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0} | options)


def png(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or picture(), "PNG", **options)


def webp(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or picture(), "WEBP", **{"lossless": True} | options)


def gif(image: Image.Image | None = None, **options: Any) -> bytes:
    paletted = (image or picture()).convert("P", palette=Image.Palette.ADAPTIVE)
    return encode(paletted, "GIF", **options)


def bmp(image: Image.Image | None = None) -> bytes:
    return encode(image or picture(), "BMP")


def stored_bmp(
    rows: list[bytes],
    bits: int,
    *,
    width: int,
    header_bytes: int = 40,
    stored_as: int = 0,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    is_top_down: bool = False,
) -> bytes:
    """A BMP of rows from the top, each in the way in which it is stored."""
    height = len(rows)
    if stored_as in (1, 2):
        # Runs, each row ended by two zeros, and the picture by 0 and 1.
        pixels = b"".join(row + b"\0\0" for row in rows[::-1]) + b"\0\1"
    else:
        ordered = rows if is_top_down else rows[::-1]
        pixels = b"".join(row + bytes(-len(row) % 4) for row in ordered)
    if header_bytes == 12:
        header = struct.pack("<I4H", 12, width, height, 1, bits)
    else:
        sides = (width, -height if is_top_down else height)
        header = struct.pack(
            "<I2i2H6I", header_bytes, *sides, 1, bits, stored_as, len(pixels), 0, 0, 0, 0
        )
        # Older headers have the masks behind them.
        header = (header + struct.pack(f"<{len(masks)}I", *masks)).ljust(header_bytes, b"\0")
    start = 14 + len(header) + len(palette)
    file_header = b"BM" + struct.pack("<I2HI", start + len(pixels), 0, 0, start)
    return file_header + header + palette + pixels


def rle_bmp(width: int = 64, height: int = 48) -> bytes:
    """A BMP of runs of one pixel, in the colours of a palette: `picture()`."""
    paletted = picture(width, height).convert("P", palette=Image.Palette.ADAPTIVE)
    colours = paletted.getpalette("BGR") or []
    palette = b"".join(bytes((*colours[at : at + 3], 0)) for at in range(0, len(colours), 3))
    rows = [b"".join(bytes((1, index)) for index in row) for row in np.asarray(paletted)]
    padded = palette.ljust(1024, b"\0")
    return stored_bmp(rows, 8, width=width, stored_as=1, palette=padded)


def tiff(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or picture(), "TIFF", **options)


def avif(image: Image.Image | None = None, **options: Any) -> bytes:
    exact = {"quality": 100, "subsampling": "4:4:4", "speed": 9}
    return encode(image or picture(), "AVIF", **exact | options)


def psd() -> bytes:
    return b"8BPS\0\1" + bytes(64)


def ico() -> bytes:
    return encode(picture(), "ICO")


def text() -> bytes:
    return b"hello world, this is not an image"


def svg() -> bytes:
    return b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def heic_header() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def in_format(image_format: str, image: Image.Image | None = None) -> bytes:
    """The picture in one of `ACCEPTED_FORMATS`; `LOSSY_FORMATS` within 4 levels, others exact."""
    writers = {"JPEG": jpeg, "PNG": png, "WEBP": webp, "GIF": gif, "BMP": bmp}
    writers |= {"TIFF": tiff, "AVIF": avif}
    return writers[image_format](image)


def truncated(encoded: bytes, kept: float = 0.5) -> bytes:
    return encoded[: int(len(encoded) * kept)]


def truncated_jpeg() -> bytes:
    return truncated(jpeg())


def truncated_png() -> bytes:
    return truncated(png())


def one_pixel(colour: tuple[int, int, int] = (200, 30, 90)) -> bytes:
    return png(Image.new("RGB", (1, 1), colour))


def animated_gif() -> bytes:
    """The first frame is `picture()`, the second another one."""
    return gif(save_all=True, append_images=[picture(seed=1)], duration=100)


def cmyk_jpeg() -> bytes:
    """`picture()` in inverted CMYK, as Adobe's programs write it."""
    return jpeg(picture().convert("CMYK"))


def multi_picture_jpeg() -> bytes:
    """As phones write: `picture()`, and another one behind it."""
    return encode(
        picture(),
        "MPO",
        save_all=True,
        append_images=[picture(seed=1)],
        quality=95,
        subsampling=0,
    )


def exif_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def exif_rotated_jpeg(orientation: int = 6) -> bytes:
    """Stored turned or mirrored, with the EXIF tag that undoes it: looks like `picture()`."""
    stored_as = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = picture() if stored_as is None else picture().transpose(stored_as)
    return jpeg(stored, exif=exif_orientation(orientation))


def upright_jpeg() -> bytes:
    """The upright twin of every `exif_rotated_jpeg`: decodes to exactly the same pixels."""
    return jpeg()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(
    width: int,
    height: int,
    bit_depth: int,
    colour_type: int,
    rows: list[bytes],
    *chunks: tuple[bytes, bytes],
) -> bytes:
    """A PNG of unfiltered rows and any chunks before them, whatever they say."""
    header = struct.pack(">2I5B", width, height, bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in parts)


def png_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    """A few bytes whose header claims a picture of any size."""
    return raw_png(width, height, 8, 2, [b"\0\0\0"])


def gif_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    """A screen of 1 x 1 and a frame that reaches far beyond it."""
    screen = struct.pack("<2H3B", 1, 1, 0, 0, 0)
    clear_the_frame = b"!\xf9\x04\x08\0\0\0\0"
    return b"GIF89a" + screen + clear_the_frame + b"," + struct.pack("<4H", 0, 0, width, height)


def webp_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def bmp_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    encoded = bytearray(bmp())
    encoded[18:26] = struct.pack("<2i", width, height)
    return bytes(encoded)


def tiff_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    encoded = bytearray(tiff())
    (at,) = struct.unpack_from("<I", encoded, 4)
    # Width and length are the first tags, each of one SHORT.
    for place, side in ((at + 2, width), (at + 14, height)):
        encoded[place + 2 : place + 12] = struct.pack("<H2I", 4, 1, side)
    return bytes(encoded)


def avif_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    encoded = bytearray(avif())
    at = encoded.index(b"ispe") + 8
    encoded[at : at + 8] = struct.pack(">2I", width, height)
    return bytes(encoded)


def jpeg_claiming(width: int = 50_000, height: int = 50_000) -> bytes:
    encoded = bytearray(jpeg())
    at = encoded.index(b"\xff\xc0") + 5
    encoded[at : at + 4] = struct.pack(">2H", height, width)
    return bytes(encoded)


def jpeg_of_many_scans(num_scans: int = 3_000) -> bytes:
    """A valid progressive JPEG whose last scan is sent over and over."""
    encoded = jpeg(progressive=True)
    last_scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    return encoded[:-2] + last_scan * num_scans + encoded[-2:]


def gray16(width: int = 256) -> np.ndarray:
    """All brightnesses of 16 bits, evenly: uint16 of shape (1, width)."""
    return np.linspace(0, 65535, width).round().astype(np.uint16)[None]


def gray16_png() -> bytes:
    return png(Image.fromarray(gray16()))


def palette_png_with_transparency() -> bytes:
    """Three pixels: red, half-transparent black, fully transparent green."""
    palette = (b"PLTE", bytes([255, 0, 0, 0, 0, 0, 0, 255, 0]))
    return raw_png(3, 1, 8, 3, [b"\0\1\2"], palette, (b"tRNS", b"\xff\x80\x00"))


def too_many_bytes(num_bytes: int = 26 * 1024 * 1024) -> bytes:
    """A good JPEG with padding behind it."""
    return jpeg().ljust(num_bytes, b"\0")
