"""Looks through a TIFF: the tags of its first picture, and the pieces that it is stored in.

Adobe's specification, revision 6.0 (1992). Tags may have millions of values, or point into
themselves, and pictures may follow each other in a circle. So the decoder gets a table of its own,
behind the file: the tags that pixels depend on, and no further picture.
"""

import struct
from typing import NamedTuple

from mask_ray.images.errors import ImageFormatError
from mask_ray.images.survey import Survey, by_pixels, corrupt, reject_parts
from mask_ray.images.survey_jpeg import survey_jpeg

_NS = 1e-9
_PIXEL_NS, _RAW_BYTE_NS, _BYTE_NS, _PIECE_NS = 5, 5, 10, 20_000
_PIXEL_BYTES = 12

# Pieces of a picture, and values of a tag. Programs write a piece for each row, or for some.
_MAX_VALUES = 65_536

_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _NUMBERS = 322, 323, 324, 325, 339
# What pixels depend on beside those: order of bits, predictor, palette, alpha, tables of JPEG, ...
_KEPT = frozenset((_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _STRIPS, _SAMPLES, _ROWS))
_KEPT |= {_STRIP_BYTES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _NUMBERS}
_KEPT |= {266, 292, 293, 317, 320, 332, 334, 338, 347, 529, 530, 531, 532}

# The types of tags that are whole numbers, and what tables of JPEG have.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i"}
_JPEG = 7
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "G3", 4: "G4", 5: "LZW", _JPEG: "JPEG", 8: "deflate"}
_COMPRESSIONS |= {32773: "PackBits", 32946: "deflate"}
# Gray, white or black at 0; RGB; of a palette; CMYK; YCbCr. Not Lab, nor the samples of a sensor.
_COLOUR_SPACES = (0, 1, 2, 3, 5, 6)
_UNSIGNED = 1
_PREVIEW = 1


class _Pieces(NamedTuple):
    """The strips or tiles of a picture: sides of one in pixels, and how many there are."""

    width: int
    height: int
    number: int


class _Tags:
    """The tags of the first picture."""

    def __init__(self, encoded: bytes) -> None:
        self.order = "<" if encoded.startswith(b"II") else ">"
        self._encoded = encoded
        self._entries: dict[int, tuple[int, int, int]] = {}
        (at,) = struct.unpack_from(f"{self.order}I", encoded, 4)
        (number,) = struct.unpack_from(f"{self.order}H", encoded, at)
        for place in range(at + 2, at + 2 + 12 * number, 12):
            tag, kind, count = struct.unpack_from(f"{self.order}2HI", encoded, place)
            self._entries.setdefault(tag, (kind, count, place + 8))

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the values of a tag."""
        if tag not in self._entries:
            return default
        kind, count, at = self._checked(tag)
        if kind not in _TYPES:
            raise corrupt("TIFF", f"tag {tag} is not a number")
        values = struct.Struct(f"{self.order}{count}{_TYPES[kind]}")
        if values.size > 4:
            (at,) = struct.unpack_from(f"{self.order}I", self._encoded, at)
        return values.unpack_from(self._encoded, at)

    def value(self, tag: int, default: int | None = None) -> int:
        """Return the first value of a tag."""
        values = self.values(tag)
        if values:
            return values[0]
        if default is None:
            raise corrupt("TIFF", f"tag {tag} is missing")
        return default

    def _checked(self, tag: int) -> tuple[int, int, int]:
        kind, count, at = self._entries[tag]
        if count > _MAX_VALUES:
            reject_parts("TIFF", f"values of tag {tag}", _MAX_VALUES)
        return kind, count, at

    def only_kept(self) -> bytes:
        """Return the file with a table of its own behind it; see the module."""
        entries = []
        for tag in sorted(self._entries.keys() & _KEPT):
            kind, count, at = self._checked(tag)
            entries.append(struct.pack(f"{self.order}2HI", tag, kind, count))
            entries.append(self._encoded[at : at + 4])
        number = struct.pack(f"{self.order}H", len(entries) // 2)
        padding = bytes(len(self._encoded) % 2)
        start = struct.pack(f"{self.order}I", len(self._encoded) + len(padding))
        parts: list[bytes | memoryview] = [
            self._encoded[:4],
            start,
            memoryview(self._encoded)[8:],
            padding,
            number,
        ]
        return b"".join([*parts, *entries, bytes(4)])


def survey_tiff(encoded: bytes, is_resized: bool) -> Survey:
    """Look through a TIFF; of several pages, at the first.

    Raises:
        ImageFormatError: a camera's raw file, or numbers or colours that no photo has.
        ImageError: a tag is missing, or a piece is cut off.
        ImageTooCostlyError: very many pieces.
    """
    tags = _Tags(encoded)
    compression = _check_kind(tags)
    width, height = tags.value(_WIDTH), tags.value(_HEIGHT)
    num_samples = max(1, tags.value(_SAMPLES, 1))
    pieces = _pieces(tags, width, height, num_samples)
    stored = _stored(tags, len(encoded))
    surveyed = by_pixels(width, height, _PIXEL_NS, _PIXEL_BYTES, tags.only_kept(), is_resized)
    pixel_bits = num_samples * max(tags.values(_BITS, (1,)))
    num_planes = num_samples if tags.value(_PLANES, 1) == 2 else 1
    raw_bytes = pieces.width * pieces.height * pieces.number * pixel_bits // (8 * num_planes)
    seconds = (
        surveyed.seconds
        + (raw_bytes * _RAW_BYTE_NS + len(encoded) * _BYTE_NS + pieces.number * _PIECE_NS) * _NS
    )
    num_bytes = surveyed.num_bytes + raw_bytes
    if compression == _JPEG:
        within = [survey_jpeg(encoded[at:end], None) for at, end in stored]
        seconds += sum(piece.seconds for piece in within)
        num_bytes += max(piece.num_bytes for piece in within)
    what = _COMPRESSIONS[compression]
    return surveyed._replace(
        seconds=seconds,
        num_bytes=num_bytes,
        reason=f"{surveyed.reason} in {pieces.number} pieces, compression {what}",
        orientation=tags.value(_ORIENTATION, 1),
    )


def _check_kind(tags: _Tags) -> int:
    """Return the compression."""
    compression, colours = tags.value(_COMPRESSION, 1), tags.value(_COLOURS, 0)
    if tags.value(_KIND, 0) & _PREVIEW:
        raise ImageFormatError("image is a camera's raw file; save it as JPEG")
    if compression not in _COMPRESSIONS:
        names = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise ImageFormatError(
            f"image is a TIFF of compression {compression}; {names} are accepted"
        )
    if colours not in _COLOUR_SPACES:
        raise ImageFormatError(
            f"image is a TIFF of colour space {colours}; gray, RGB, CMYK and YCbCr are accepted"
        )
    bits = tags.values(_BITS, (1,))
    if {*tags.values(_NUMBERS, (_UNSIGNED,))} != {_UNSIGNED} or not {*bits} <= {1, 2, 4, 8, 16}:
        raise ImageFormatError(
            f"image is a TIFF of {max(bits, default=0)} bits a sample, maybe with signs or "
            "fractions; whole numbers of up to 16 bits are accepted"
        )
    return compression


def _pieces(tags: _Tags, width: int, height: int, num_samples: int) -> _Pieces:
    tile = tags.value(_TILE_WIDTH, 0), tags.value(_TILE_HEIGHT, 0)
    if all(tile):
        across, down = -(-width // tile[0]), -(-height // tile[1])
        sides = tile
    else:
        sides = width, max(1, min(height, tags.value(_ROWS, height)))
        across, down = 1, -(-height // sides[1])
    number = across * down * (num_samples if tags.value(_PLANES, 1) == 2 else 1)
    if number > _MAX_VALUES:
        reject_parts("TIFF", "pieces", _MAX_VALUES)
    return _Pieces(*sides, number)


def _stored(tags: _Tags, file_bytes: int) -> list[tuple[int, int]]:
    """Return where each piece begins and ends in the file."""
    starts = tags.values(_TILES) or tags.values(_STRIPS)
    sizes = tags.values(_TILE_BYTES) or tags.values(_STRIP_BYTES)
    if not starts or len(starts) != len(sizes):
        raise corrupt("TIFF", "it does not say where its pixels are")
    places = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    if any(end > file_bytes for _, end in places):
        raise corrupt("TIFF", "its pixels are cut off")
    return places
