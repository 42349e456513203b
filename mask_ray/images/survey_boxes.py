"""Looks through AVIF and HEIC, which are both in boxes: ISO/IEC 14496-12 and 23008-12.

The sizes of all pictures of a file stand in one box. The largest is that of the picture shown, or
of the grid that it is put together of. Its Exif and XMP get another name, so that no library reads
them: which way is up stands in boxes of its own.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mask_ray.images.errors import ImageFormatError
from mask_ray.images.survey import MAX_PARTS, Survey, by_pixels, corrupt, reject_parts, rest

_NS = 1e-9
_AVIF_PIXEL_NS, _AVIF_BYTE_NS, _AVIF_PIXEL_BYTES = 35, 120, 12
_HEIC_PIXEL_NS, _HEIC_BYTE_NS, _HEIC_PIXEL_BYTES = 25, 200, 12

# Boxes that hold boxes, and the bytes before those: version and flags, and a number of items.
_PARENTS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6}
_SIZE, _ITEM = b"ispe", b"infe"
_METADATA = re.compile(rb"Exif|mime")
_TURNED = 6


class _Box(NamedTuple):
    """One box. `start` is where its contents begin, in bytes."""

    name: bytes
    start: int
    end: int


def survey_avif(encoded: bytes, is_resized: bool) -> Survey:
    """Look through an AVIF. Of an animation, its still picture is decoded.

    Raises:
        ImageFormatError: it is an animation without a still picture.
        ImageError: no picture says how large it is.
    """
    surveyed = _survey(encoded, "AVIF", _AVIF_PIXEL_NS, _AVIF_PIXEL_BYTES, is_resized)
    contents = surveyed.contents
    if contents[8:12] in (b"avis", b"msf1"):
        # The decoder would read the animation, whose pictures have tables of their own.
        contents = contents[:8] + b"avif" + contents[12:]
    return surveyed._replace(
        seconds=surveyed.seconds + len(encoded) * _AVIF_BYTE_NS * _NS, contents=contents
    )


def survey_heic(encoded: bytes, is_resized: bool) -> Survey:
    """Look through a HEIC.

    Raises:
        ImageError: no picture says how large it is.
    """
    surveyed = _survey(encoded, "HEIC", _HEIC_PIXEL_NS, _HEIC_PIXEL_BYTES, is_resized)
    return surveyed._replace(seconds=surveyed.seconds + len(encoded) * _HEIC_BYTE_NS * _NS)


def _survey(
    encoded: bytes, format_name: str, pixel_ns: int, pixel_bytes: int, is_resized: bool
) -> Survey:
    contents = bytearray(encoded)
    sizes: list[tuple[int, int]] = []
    has_pictures = False
    for box in _boxes(encoded, format_name):
        has_pictures |= box.name == b"meta"
        if box.name == _SIZE:
            sizes.append(struct.unpack_from(">2I", encoded, box.start + 4))
        elif box.name == _ITEM:
            _hide_metadata(contents, box)
    if not has_pictures:
        raise ImageFormatError(
            f"image is an animated {format_name} without a still picture; save a frame as JPEG"
        )
    if not sizes:
        raise corrupt(format_name, "no picture says how large it is")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    # It may have to be turned upright.
    pixel_bytes += rest(_TURNED, True)
    return by_pixels(width, height, pixel_ns, pixel_bytes, bytes(contents), is_resized)


def _boxes(encoded: bytes, format_name: str) -> Iterator[_Box]:
    """Yield all boxes that are looked into, each before those that it holds."""
    spans = [(0, len(encoded))]
    num_boxes = 0
    while spans:
        at, end = spans.pop()
        while at + 8 <= end:
            num_boxes += 1
            if num_boxes > MAX_PARTS:
                reject_parts(format_name, "boxes")
            box, at = _box(encoded, at, end, format_name)
            yield box
            if box.name in _PARENTS:
                spans.append((box.start + _before_items(encoded, box), box.end))


def _box(encoded: bytes, at: int, end: int, format_name: str) -> tuple[_Box, int]:
    """Read the header of a box. Returns it, and where the next one begins."""
    size, name = struct.unpack_from(">I4s", encoded, at)
    start = at + 8
    if size == 1:
        (size,) = struct.unpack_from(">Q", encoded, start)
        start += 8
    after = at + size if size else end
    if after < start or after > end:
        raise corrupt(format_name, "a box is cut off")
    return _Box(name, start, after), after


def _before_items(encoded: bytes, box: _Box) -> int:
    num_bytes = _PARENTS[box.name]
    # From version 1 the number of items has four bytes instead of two.
    return num_bytes + 2 if box.name == b"iinf" and encoded[box.start] else num_bytes


def _hide_metadata(contents: bytearray, box: _Box) -> None:
    """Rename an item that is Exif, or XMP, to what nothing reads."""
    # Version and flags, the item's number in two or four bytes, and two that protect nothing.
    at = box.start + (8 if contents[box.start] == 2 else 10)
    if _METADATA.match(contents, at, box.end):
        contents[at : at + 4] = b"none"
