"""Recognises the format of a file by its first bytes, and opens it with what decodes that."""

import io
import re
from collections.abc import Callable

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mask_ray.config import IMAGE_FORMATS, readable_formats
from mask_ray.images.errors import ImageError, ImageFormatError


def _open_heic(file: io.BytesIO) -> ImageFile:
    from pillow_heif.as_plugin import HeifImageFile

    image: ImageFile = HeifImageFile(file)
    return image


# The plugins are called directly. Image.open would warn about large images, or reject them, before
# their size can be read, and would open multi-picture JPEGs with another plugin.
_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
    "HEIC": _open_heic,
}

# The first bytes of each format. Those that are not accepted are only recognised, never opened.
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    # With the size of its second header, or any text that begins with BM would be one.
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II\*\0|MM\0\*",
    "BigTIFF": rb"II\+\0|MM\0\+",
    "ICO": rb"\0\0[\1\2]\0",
    # Some name the format among the brands that they are compatible with.
    "AVIF": rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,8}?avi[fs])",
    "HEIC": rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|m[is]f1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "JPEG XR": rb"II\xbc",
    "PSD": rb"8BPS",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*<(?:svg|!DOCTYPE svg|[?!].{0,900}<svg)",
    "Netpbm": rb"P[1-6]\s+[\d#]|P7\s",
    "OpenEXR": rb"v/1\x01",
    "DDS": rb"DDS ",
    "QOI": rb"qoif",
    "ICNS": rb"icns",
}
_FORMAT = re.compile(
    b"|".join(b"(%b)" % signature for signature in _SIGNATURES.values()), re.DOTALL
)
_BY_NAME = {each.name: each for each in IMAGE_FORMATS}


def accepted_names() -> str:
    """Return the end of an error: which formats are accepted."""
    *names, last = (each.name for each in readable_formats())
    return f"{', '.join(names)} and {last} are accepted"


def accepted_format(encoded: bytes) -> str:
    """Return the name of a file's format.

    Raises:
        ImageFormatError: it is not accepted, or what decodes it is not installed.
        ImageError: not an image.
    """
    match = _FORMAT.match(encoded)
    if match is None or match.lastindex is None:
        # Without the bytes: reports show the message, and the file may be any of the machine's.
        raise ImageError(
            f"not an image: got {len(encoded)} bytes of another kind; {accepted_names()}"
        )
    name = list(_SIGNATURES)[match.lastindex - 1]
    image_format = _BY_NAME.get(name)
    if image_format is None:
        raise ImageFormatError(f"image is {name}; {accepted_names()}")
    if not image_format.is_readable:
        raise ImageFormatError(
            f"image is {name}, which needs {image_format.package}; {accepted_names()}"
        )
    return name


def open_image(format_name: str, contents: bytes) -> ImageFile:
    """Read the header of a file in an accepted format."""
    return _PLUGINS[format_name](io.BytesIO(contents))
