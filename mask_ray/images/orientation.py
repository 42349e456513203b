"""Reads which way is up from an image's metadata, and nothing else of it.

Pillow's reader loads every tag of Exif, and a tag says itself where its value is: 60 KB whose tags
all point to the same bytes take 300 MB. Here one tag is searched for in one table.
"""

import re
import struct

_TAG = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
# Sizes of values by the type that Exif gives them: BYTE, SHORT, LONG.
_FORMATS = {1: "B", 3: "H", 4: "I"}
_MAX_XMP_BYTES = 64 * 1024
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Return the value of Exif's tag, or else of XMP's; 1, upright, if neither says.

    Args:
        exif: Exif as it is stored in a file; empty if there is none.
        xmp: XMP likewise.
    """
    found = _of_exif(exif) if exif else None
    if found is None and xmp and (match := _XMP.search(xmp[:_MAX_XMP_BYTES])):
        found = int(match[1])
    return 1 if found is None else found


def _of_exif(exif: bytes) -> int | None:
    exif = exif.removeprefix(_EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_tags,) = struct.unpack_from(f"{order}H", exif, at)
        for place in range(at + 2, at + 2 + 12 * num_tags, 12):
            tag, kind, count = struct.unpack_from(f"{order}2HI", exif, place)
            if tag == _TAG and kind in _FORMATS and count == 1:
                return int(struct.unpack_from(order + _FORMATS[kind], exif, place + 8)[0])
    except struct.error:
        pass
    return None
