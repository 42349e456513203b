"""Decode encoded images to uint8 RGB arrays, within limits.

Training, evaluation and serving all use this decoder, so a model sees the same pixels everywhere.
It does not depend on labels, models or HTTP, nor on Pillow's global settings, so any number of
threads may decode at once.
"""

from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from mask_ray.config import ImageLimits
from mask_ray.images.errors import (
    ImageError,
    ImageTooCostlyError,
    ImageTooLargeError,
)
from mask_ray.images.formats import accepted_format, accepted_names, open_image
from mask_ray.images.survey import SURVEYS, Survey, corrupt
from mask_ray.images.survey_boxes import survey_avif, survey_heic
from mask_ray.images.survey_jpeg import survey_jpeg
from mask_ray.images.survey_tiff import survey_tiff

RGBArray = NDArray[np.uint8]

# The longest side of a JPEG. Pillow needs 12 bytes or more for each row, so an image of one column
# within the pixel limit could take a gigabyte.
_MAX_SIDE_PX = 65_535

_SURVEYS = SURVEYS | {"TIFF": survey_tiff, "AVIF": survey_avif, "HEIC": survey_heic}

_END_OF_JPEG = b"\xff\xd9"
# What a JPEG without its end is continued with: codes, and the markers of all restarts.
_MORE_CODES = b"".join(bytes(range(1, 251)) * 32 + bytes((0xFF, 0xD0 + n)) for n in range(8)) * 2

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_DEFAULT_LIMITS = ImageLimits.model_validate({})


@dataclass(frozen=True)
class Header:
    """Format and size from a file's header. Sides in pixels, before any rotation."""

    format_name: str
    width: int
    height: int


def read_header(encoded: bytes, limits: ImageLimits = _DEFAULT_LIMITS) -> Header:
    """Read format and size of an image that `decode` accepts, without decoding pixels.

    Raises:
        Exception: any error of Pillow's. Call `decode` first: what it accepts has a header.
    """
    examined = examine(encoded, limits)
    return Header(examined.format_name, *_open(examined).size)


class Examined(NamedTuple):
    """A file that was looked through and is within the limits, ready to be decoded.

    Args:
        format_name: As messages show it.
        contents: The file without its metadata.
        orientation: Value of the tag of Exif; 1 is upright.
        seconds: Predicted time of decoding on one core.
        num_bytes: Predicted peak of the memory that decoding takes.
        at_least_px: As in `decode`.
        max_pixels: The limit of its pixels, which its decoder's header is checked against again.
        max_bytes: The limit of the memory that decoding may take.
        is_endless: Whether it is a JPEG without the marker of its end.
    """

    format_name: str
    contents: bytes
    orientation: int
    seconds: float
    num_bytes: int
    at_least_px: int | None
    max_pixels: int
    max_bytes: int
    is_endless: bool = False


def examine(
    encoded: bytes, limits: ImageLimits = _DEFAULT_LIMITS, *, at_least_px: int | None = None
) -> Examined:
    """Look through a file in one pass over its bytes, and predict what decoding it will cost.

    Raises:
        ImageError: as `decode`, for all that is known before a pixel is decoded.
    """
    if not encoded:
        raise ImageError(f"image is empty: got 0 bytes; {accepted_names()}")
    if len(encoded) > limits.max_image_bytes:
        raise ImageTooLargeError(
            f"image has {len(encoded)} bytes; at most {limits.max_image_bytes} are allowed"
        )
    format_name = accepted_format(encoded)
    try:
        surveyed = _survey(encoded, format_name, at_least_px)
    except Exception as error:
        _reject_corrupt(format_name, error)
    _check_pixels((surveyed.width, surveyed.height), limits.max_image_pixels)
    _check_cost(surveyed, format_name, limits)
    return Examined(
        format_name,
        surveyed.contents,
        surveyed.orientation,
        surveyed.seconds,
        surveyed.num_bytes,
        at_least_px,
        limits.max_image_pixels,
        limits.max_decode_bytes,
        surveyed.is_endless,
    )


def decode_examined(examined: Examined, image_size: int) -> RGBArray:
    """Decode and resize as `decode_resized`, for a file that was examined for that size."""
    return _resized(_decode(examined), image_size)


def decode(
    encoded: bytes, limits: ImageLimits = _DEFAULT_LIMITS, *, at_least_px: int | None = None
) -> RGBArray:
    """Decode one image, in a format of `config.IMAGE_FORMATS`, to RGB.

    Of an animation, or a file of several pages, the first is decoded; HEIC needs pillow-heif.

    With `at_least_px`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is faster.
    Neither side falls below `at_least_px`, unless it already was.

    Returns uint8 of shape (height, width, 3), read-only and upright: the EXIF orientation is
    applied, alpha is flattened onto white, and 16 bits a channel are scaled down to 8.

    Raises:
        ImageTooLargeError: over `limits`, in bytes, in pixels, or in what decoding would cost
            (ImageTooCostlyError). All are checked before any pixel is decoded.
        ImageFormatError: an image of another format, such as PSD, or a rare kind of one of these.
        ImageError: not an image, empty, truncated or corrupt.
    """
    return np.asarray(_decode(examine(encoded, limits, at_least_px=at_least_px)))


def decode_resized(
    encoded: bytes, image_size: int, limits: ImageLimits = _DEFAULT_LIMITS
) -> RGBArray:
    """Decode one image and resize it to a square, bilinear with antialiasing.

    The picture is stretched rather than cropped, so that a face at its edge is not cut off. Faces
    in training and serving are distorted alike.

    Returns uint8 of shape (image_size, image_size, 3), read-only, otherwise as `decode`.

    Raises:
        ImageError: as `decode`.
    """
    return decode_examined(examine(encoded, limits, at_least_px=image_size), image_size)


def resize(pixels: RGBArray, image_size: int) -> RGBArray:
    """Resize decoded pixels as `decode_resized` does.

    Takes uint8 of shape (height, width, 3), and returns (image_size, image_size, 3), read-only.
    """
    return _resized(Image.fromarray(pixels), image_size)


def _resized(image: Image.Image, image_size: int) -> RGBArray:
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def _decode(examined: Examined) -> Image.Image:
    try:
        if examined.is_endless:
            return _decode_endless(examined)
        return _decode_pixels(examined)
    except Exception as error:
        _reject_corrupt(examined.format_name, error)


def _decode_pixels(examined: Examined, tail: bytes = b"") -> Image.Image:
    image = _open(examined, tail)
    orientation = examined.orientation
    if examined.format_name == "JPEG" and examined.at_least_px is not None:
        image.draft(None, (examined.at_least_px, examined.at_least_px))
    elif examined.format_name == "AVIF":
        # Where it says so, not in its Exif; only the decoder knows which picture is the one shown.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return _upright(_to_rgb(image), orientation)


def _decode_endless(examined: Examined) -> Image.Image:
    """Decode a JPEG without its end, if all of its picture is there.

    The decoder fills in what is missing, and does not say so. So the file is decoded twice, once
    with more codes behind it: if the pictures differ, a part of the picture was missing.
    """
    # The file may end within a marker.
    examined = examined._replace(contents=examined.contents.rstrip(b"\xff"))
    image = _decode_pixels(examined, _END_OF_JPEG)
    if image != _decode_pixels(examined, _MORE_CODES + _END_OF_JPEG):
        raise corrupt("JPEG", "its last lines are missing")
    return image


def _reject_corrupt(format_name: str, error: Exception) -> NoReturn:
    """Raise an ImageError for whatever a parser raised.

    Pillow's raise many types: OSError, SyntaxError, struct.error, IndexError, zlib.error,
    MemoryError, ...
    """
    if isinstance(error, ImageError):
        raise error
    raise corrupt(format_name, str(error) or type(error).__name__) from error


def _open(examined: Examined, tail: bytes = b"") -> ImageFile:
    """Read the header of a file and a tail. Pixels are decoded at the first use of the image."""
    image = open_image(examined.format_name, examined.contents + tail)
    _check_pixels(image.size, examined.max_pixels)
    return image


def _survey(encoded: bytes, format_name: str, at_least_px: int | None) -> Survey:
    if format_name == "JPEG":
        return survey_jpeg(encoded, at_least_px)
    return _SURVEYS[format_name](encoded, at_least_px is not None)


def _check_cost(surveyed: Survey, format_name: str, limits: ImageLimits) -> None:
    if surveyed.seconds > limits.max_decode_s:
        raise ImageTooCostlyError(
            f"{format_name} image would take about {surveyed.seconds:.1f} s to decode "
            f"({surveyed.reason}); at most {limits.max_decode_s:g} s are allowed"
        )
    if surveyed.num_bytes > limits.max_decode_bytes:
        raise ImageTooCostlyError(
            f"{format_name} image would take about {surveyed.num_bytes} bytes of memory to decode "
            f"({surveyed.reason}); at most {limits.max_decode_bytes} are allowed"
        )


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"image has {width} x {height} = {width * height} pixels; "
            f"at most {max_pixels} are allowed"
        )
    if max(size) > _MAX_SIDE_PX:
        raise ImageTooLargeError(
            f"image has {width} x {height} pixels; at most {_MAX_SIDE_PX} a side are allowed"
        )


def _to_rgb(image: ImageFile) -> Image.Image:
    _rescale_colour_key(image)
    image.load()
    if image.mode in ("I;16", "I;16B"):
        return _gray16_to_rgb(image)
    if image.has_transparency_data and not _is_alpha_unused(image):
        return _flatten(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_alpha_unused(image: ImageFile) -> bool:
    """Whether a BMP has room for alpha and nothing in it, which browsers show as opaque."""
    return image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox()


def _rescale_colour_key(image: ImageFile) -> None:
    """Scale a PNG's transparent colour from the file's bit depth to Pillow's 8 bits."""
    key = image.info.get("transparency")
    depth = image.tile[0].args if image.tile else None
    if isinstance(key, int) and depth in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if depth == "L;2" else 17)
    elif isinstance(key, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in key)


def _gray16_to_rgb(image: Image.Image) -> Image.Image:
    """Keep the high byte, as Pillow does with 16-bit colour. `convert` would clip at 255."""
    gray = np.asarray(image)
    high_byte = Image.fromarray((gray >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is None:
        return high_byte.convert("RGB")
    alpha = Image.fromarray(np.where(gray == key, np.uint8(0), np.uint8(255)))
    return _flatten(Image.merge("LA", (high_byte, alpha)).convert("RGBA"))


def _flatten(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image)
    return flat


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _UPRIGHT.get(orientation)
    return image if transpose is None else image.transpose(transpose)
