"""Small files that take a decoder long, or much memory, unless it looks at them first."""

import io
import json
import random
import struct
import zlib
from typing import Any

from PIL import Image

# A table with one code of one bit, for "the next 16,384 blocks or more have nothing more to say".
_END_OF_BAND = b"\x01" + bytes(15) + b"\xe0"
_DC_ZERO = b"\x01" + bytes(15) + b"\x00"


def _encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _photo(image_format: str, **options: Any) -> bytes:
    return _encoded(Image.new("RGB", (64, 48), "teal"), image_format, **options)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _segment(code: int, payload: bytes) -> bytes:
    return struct.pack(">2BH", 0xFF, code, len(payload) + 2) + payload


def _end_of_band_data(num_blocks: int) -> bytes:
    """Codes that end the band of at least this many blocks, each 0 and then fourteen 1s."""
    bits = "011111111111111" * (num_blocks // 32_767 + 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return data.replace(b"\xff", b"\xff\x00")


def progressive_jpeg(
    width: int,
    height: int,
    num_scans: int,
    *,
    is_arithmetic: bool = False,
    num_components: int = 1,
    data: bytes | None = None,
    is_refined: bool = True,
) -> bytes:
    """A progressive JPEG of a few hundred bytes whose scans pass over all blocks for nothing."""
    ids = range(1, num_components + 1)
    frame = struct.pack(">BHHB", 8, height, width, num_components)
    frame += b"".join(bytes((n, 0x11, 0)) for n in ids)
    tables = b"" if is_arithmetic else _segment(0xC4, b"\x00" + _DC_ZERO + b"\x10" + _END_OF_BAND)
    head = _segment(0xDB, b"\0" + b"\1" * 64)
    head += _segment(0xCA if is_arithmetic else 0xC2, frame) + tables
    first = bytes((num_components,)) + b"".join(bytes((n, 0)) for n in ids) + b"\0\0\1"
    scans = [_segment(0xDA, first)]
    if data is None:
        num_blocks = -(-width // 8) * -(-height // 8)
        data = b"" if is_arithmetic else _end_of_band_data(num_blocks)
    for number in range(num_scans - 1):
        which = 1 + number % num_components
        bits = 0x10 if is_refined else 0
        scans.append(_segment(0xDA, bytes((1, which, 0, 1, 63, bits))) + data)
    return b"\xff\xd8" + head + b"".join(scans) + b"\xff\xd9"


def exif_segments(num_segments: int = 523_000) -> bytes:
    """A JPEG with very many small Exif segments, which Pillow joins one by one."""
    plain = _photo("JPEG")
    return plain[:2] + _segment(0xE1, b"Exif\0\0" + bytes(10)) * num_segments + plain[2:]


def exif_of_overlapping_tags(num_tags: int = 5_000) -> bytes:
    """A JPEG with one segment of Exif whose tags all have the same 60 KB as their value."""
    tags = b"".join(struct.pack("<2H2I", 0x8000 + n, 7, 60_000, 8) for n in range(num_tags))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", num_tags) + tags
    return _photo("JPEG", exif=exif.ljust(65_000, b"\0"))


def iccp_chunks(num_chunks: int = 2_000) -> bytes:
    """A PNG of a pixel with chunks of 1 KiB that unpack to 1 MiB each."""
    plain = _photo("PNG")
    packed = zlib.compress(bytes(2**20 - 16), 9)
    return plain[:33] + _png_chunk(b"iCCP", b"a\0\0" + packed) * num_chunks + plain[33:]


def png_of_tiny_chunks(num_chunks: int = 500_000) -> bytes:
    """A PNG whose pixels come in chunks without a byte."""
    plain = _photo("PNG")
    at = plain.index(b"IDAT") - 4
    return plain[:at] + _png_chunk(b"IDAT", b"") * num_chunks + plain[at:]


def gif_of_comments(num_blocks: int = 40_000) -> bytes:
    """A GIF whose comment is in very many blocks."""
    plain = _encoded(Image.new("P", (8, 8)), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * num_blocks + b"\0"
    at = 13 + (3 << (plain[10] & 7) + 1 if plain[10] & 0x80 else 0)
    return plain[:at] + comment + plain[at:]


def animated_webp(side: int = 7_000) -> bytes:
    """Two frames of some pixels on a canvas of this side."""
    frames = [Image.new("RGBA", (16, 16), colour) for colour in ((0, 0, 0, 9), (9, 9, 9, 9))]
    small = _encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return small[:24] + 2 * (side - 1).to_bytes(3, "little") + small[30:]


def webp_of_groups(side: int = 1_024) -> bytes:
    """A lossless WebP of 295 KB with a group of Huffman codes for each block of 4 x 4 pixels."""
    num_groups = min(65_536, (side // 4) ** 2)
    fields = [(side - 1, 14), (side - 1, 14), (0, 1), (0, 3)]
    # No transform and no cache; groups by blocks, whose picture has no cache either.
    fields += [(0, 1), (0, 1), (1, 1), (0, 3), (0, 1)]
    simple = [(1, 1), (0, 1), (0, 1), (0, 1)]
    fields += [*_webp_code_of_bytes(280), *_webp_code_of_bytes(256), *simple * 3]
    reversed_bits = [int(f"{byte:08b}"[::-1], 2) for byte in range(256)]
    for group in range(num_groups):
        fields += [(reversed_bits[group & 255], 8), (reversed_bits[group >> 8], 8)]
    fields += simple * 5 * num_groups
    bits = "".join(f"{value:0{width}b}"[::-1] for value, width in fields)
    data = b"\x2f" + int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little") + bytes(8)
    data += bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(data) + 12) + b"WEBPVP8L" + _length(data) + data


def _webp_code_of_bytes(num_symbols: int) -> list[tuple[int, int]]:
    """A Huffman code in which 256 symbols have eight bits each, and the rest none."""
    order = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8]
    lengths = [(int(symbol in (0, 8)), 3) for symbol in order]
    return [
        *[(0, 1), (8, 4), *lengths, (0, 1)],
        *((int(symbol < 256), 1) for symbol in range(num_symbols)),
    ]


def _length(data: bytes) -> bytes:
    return struct.pack("<I", len(data))


def png_of_profiles(num_chunks: int = 4_000) -> bytes:
    """A PNG with thousands of texts. Each stands for Exif, and unpacks to 1 MiB."""
    plain = _photo("PNG")
    packed = zlib.compress(b"\nexif\n  524270\n" + b"0" * (2**20 - 16), 9)
    chunk = _png_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed)
    return plain[:33] + chunk * num_chunks + plain[33:]


def gif_of_empty_extensions(num_blocks: int = 87_000) -> bytes:
    """A GIF with very many extensions that hold nothing."""
    plain = _encoded(Image.new("P", (8, 8)), "GIF")
    at = 13 + (3 << (plain[10] & 7) + 1 if plain[10] & 0x80 else 0)
    return plain[:at] + b"!\xfe\0" * num_blocks + plain[at:]


def noise(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes without a marker of JPEG."""
    return random.Random(seed).randbytes(num_bytes).replace(b"\xff", b"\xfe")


def many_inputs(num_inputs: int = 500_000) -> bytes:
    """JSON of an inference request with very many empty inputs."""
    return json.dumps({"inputs": [{}] * num_inputs}, separators=(",", ":")).encode()
