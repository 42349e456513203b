"""Looks through a JPEG: its frame, its scans, and everything before them but metadata.

A scan passes over all blocks of its components, even if it holds no data for them, and a file of a
kilobyte can hold a hundred scans of fifty megapixels. Where a scan ends is found as libjpeg does:
at the next marker that is not a restart.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from mask_ray.images.errors import ImageError
from mask_ray.images.orientation import read_orientation
from mask_ray.images.survey import MAX_PARTS, Survey, corrupt, reject_parts, rest

_NS = 1e-9
_FIXED_S = 80e-6
# Huffman coding.
_BLOCK_NS = 18  # per block without data in a scan
_REFINED_NS = 2  # per coefficient that a scan refines
_BYTE_NS = 25  # per coded byte
# Lossless coding: 64 samples, each predicted and decoded.
_LOSSLESS_BLOCK_NS = 64 * 5
# Arithmetic coding, as above. A byte may stand for many decisions.
_ARITHMETIC_BLOCK_NS = 250
_ARITHMETIC_NS = 10
_ARITHMETIC_BYTE_NS = 500
# From coefficients to RGB.
_TRANSFORM_NS = 80  # per block
_PIXEL_NS = 15  # per pixel of the picture, as it is scaled while it is decoded

# 64 coefficients, which are kept if there is more than one scan.
_BLOCK_BYTES = 128

# Encoders write about ten. More are refused whatever their cost.
_MAX_SCANS = 100

_SOS, _EOI, _ADOBE = 0xDA, 0xD9, 0xEE
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset(range(0xD0, 0xDA)) | {0x01}
# A comment and applications' data, except JFIF's and Adobe's, which say what the colours mean.
_METADATA = frozenset(range(0xE1, 0xF0)) - {_ADOBE} | {0xFE}

_END = b"\xff\xd9"
_SEGMENT = struct.Struct(">BBH")
_FRAME_HEADER = struct.Struct(">2HB")
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_AFTER_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class _Frame(NamedTuple):
    """The header of a frame, with the id and the number of blocks of each component."""

    code: int
    width: int
    height: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def num_blocks(self) -> int:
        return sum(number for _, number in self.blocks)

    @property
    def is_arithmetic(self) -> bool:
        return self.code >= 0xC9

    @property
    def is_progressive(self) -> bool:
        return self.code & 3 == 2

    @property
    def is_lossless(self) -> bool:
        return self.code & 3 == 3


@dataclass
class _Scans:
    """What the scans add up to."""

    frame: _Frame
    is_buffered: bool
    seconds: float = 0.0
    number: int = 0
    is_endless: bool = False


@dataclass
class _Head:
    """What stands before the first scan."""

    kept: list[bytes | memoryview] = field(default_factory=lambda: [b"\xff\xd8"])
    frame: _Frame | None = None
    exif: bytes = b""
    xmp: bytes = b""
    num_segments: int = 0


def survey_jpeg(encoded: bytes, at_least_px: int | None) -> Survey:
    """Look through a JPEG.

    Args:
        encoded: The file.
        at_least_px: Side below which it is not scaled while it is decoded; None: it is not scaled.

    Raises:
        ImageError: it has no frame or no scan, or a segment is cut off.
        ImageTooCostlyError: very many segments.
    """
    head = _Head()
    at = _read_head(encoded, head)
    frame = head.frame
    if frame is None:
        raise corrupt("JPEG", "it has no frame before its first scan")
    scans = _read_scans(encoded, at, frame, head.num_segments)
    if scans.number > _MAX_SCANS:
        raise ImageError(f"JPEG image has {scans.number} scans; at most {_MAX_SCANS} are allowed")
    orientation = read_orientation(head.exif, head.xmp)
    coding, byte_ns = "Huffman", _BYTE_NS
    if frame.is_arithmetic:
        coding, byte_ns = "arithmetic", _ARITHMETIC_BYTE_NS
    num_pixels = _num_decoded_pixels(frame, at_least_px)
    decoded_ns = frame.num_blocks * _TRANSFORM_NS + num_pixels * _PIXEL_NS
    num_bytes = num_pixels * (8 + rest(orientation, at_least_px is not None)) + 64 * frame.width
    if scans.is_buffered:
        num_bytes += frame.num_blocks * _BLOCK_BYTES
    seconds = _FIXED_S + (decoded_ns + (len(encoded) - at) * byte_ns) * _NS + scans.seconds
    # Without its end it is decoded twice, to see whether its picture is whole.
    times = 2 if scans.is_endless else 1
    return Survey(
        frame.width,
        frame.height,
        times * seconds,
        times * num_bytes,
        f"{frame.width} x {frame.height} pixels in {scans.number} scans with {coding} coding",
        b"".join([*head.kept, memoryview(encoded)[at:]]),
        orientation,
        scans.is_endless,
    )


def _num_decoded_pixels(frame: _Frame, at_least_px: int | None) -> int:
    scale = 1
    if at_least_px:
        ratio = min(frame.width, frame.height) // at_least_px
        scale = max(s for s in (1, 2, 4, 8) if s == 1 or ratio >= s)
    return -(-frame.width // scale) * -(-frame.height // scale)


def _read_head(encoded: bytes, head: _Head) -> int:
    """Read the segments up to the first scan, and return where it begins."""
    at, size = 2, len(encoded)
    while at + 4 <= size:
        first, code, length = _SEGMENT.unpack_from(encoded, at)
        if first != 0xFF or code in (0, 0xFF):
            # Padding, or rubbish, which decoders skip.
            match = _MARKER.search(encoded, at)
            at = size if match is None else match.start()
            continue
        head.num_segments += 1
        if head.num_segments > MAX_PARTS:
            reject_parts("JPEG", "segments")
        if code in _ALONE:
            head.kept.append(encoded[at : at + 2])
            at += 2
            continue
        end = at + 2 + length
        if length < 2 or end > size:
            raise corrupt("JPEG", "a segment is cut off")
        if code == _SOS:
            return at
        if code in _METADATA:
            _note(encoded, at + 4, end, code, head)
        else:
            head.kept.append(encoded[at:end])
        if code in _FRAMES:
            if head.frame is not None:
                raise corrupt("JPEG", "it has two frames")
            head.frame = _frame(encoded[at + 4 : end], code)
        at = end
    raise corrupt("JPEG", "it has no scan")


def _note(encoded: bytes, at: int, end: int, code: int, head: _Head) -> None:
    if code != 0xE1:
        return
    if not head.exif and encoded.startswith(_EXIF, at, end):
        head.exif = encoded[at:end]
    elif not head.xmp and encoded.startswith(_XMP, at, end):
        head.xmp = encoded[at + len(_XMP) : end]


def _frame(header: bytes, code: int) -> _Frame:
    if len(header) < 6:
        raise corrupt("JPEG", "its frame is cut off")
    height, width, num_components = _FRAME_HEADER.unpack_from(header, 1)
    names, factors = (header[at : 6 + 3 * num_components : 3] for at in (6, 7))
    if len(header) < 6 + 3 * num_components:
        raise corrupt("JPEG", "its frame is cut off")
    if not num_components:
        raise corrupt("JPEG", "its frame has no component")
    horizontal = [both >> 4 or 1 for both in factors]
    vertical = [both & 15 or 1 for both in factors]
    across = -(-width // (8 * max(horizontal)))
    down = -(-height // (8 * max(vertical)))
    numbers = [across * h * down * v for h, v in zip(horizontal, vertical, strict=True)]
    return _Frame(code, width, height, tuple(zip(names, numbers, strict=True)))


def _read_scans(encoded: bytes, at: int, frame: _Frame, num_segments: int) -> _Scans:
    """Add up the scans, from the first to the end of the image."""
    num_components = encoded[at + 4] if at + 4 < len(encoded) else 0
    is_buffered = frame.is_progressive or num_components < len(frame.blocks)
    scans = _Scans(frame, is_buffered)
    if frame.code in _SEQUENTIAL and not is_buffered and encoded.endswith(_END):
        # An ordinary photo. The decoder reads no other scan, and raises an error if there is one.
        _add_scan(encoded, at, scans)
        return scans
    code = _SOS
    while code != _EOI:
        if code == _SOS:
            _add_scan(encoded, at, scans)
        if code not in _ALONE and code >= 0xC0:
            at += max(2, int.from_bytes(encoded[at + 2 : at + 4], "big"))
        match = _MARKER_AFTER_DATA.search(encoded, at + 2)
        if match is None:
            scans.is_endless = True
            break
        at, code = match.start(), encoded[match.start() + 1]
        num_segments += 1
        if num_segments > MAX_PARTS:
            reject_parts("JPEG", "segments")
    return scans


def _add_scan(encoded: bytes, at: int, scans: _Scans) -> None:
    num_components = encoded[at + 4] if at + 4 < len(encoded) else 0
    after = at + 5 + 2 * num_components
    ids = encoded[at + 5 : after : 2]
    first, last, bits = encoded[after : after + 3].ljust(3, b"\0")
    # What cannot be a scan counts as one of everything.
    num_blocks = sum(n for name, n in scans.frame.blocks if name in ids) or scans.frame.num_blocks
    num_coefficients = last - first + 1 if first <= last < 64 and scans.frame.is_progressive else 64
    if scans.frame.is_arithmetic:
        each_ns = _ARITHMETIC_BLOCK_NS + num_coefficients * _ARITHMETIC_NS
    elif scans.frame.is_lossless:
        each_ns = _LOSSLESS_BLOCK_NS
    else:
        is_refined = bits >> 4 != 0
        each_ns = _BLOCK_NS + (num_coefficients * _REFINED_NS if is_refined else 0)
    scans.seconds += num_blocks * each_ns * _NS
    scans.number += 1
