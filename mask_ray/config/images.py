"""The image formats that every stage accepts, and how large an image may be."""

from dataclasses import dataclass
from importlib.util import find_spec

from pydantic import Field

from mask_ray.config.base import Settings


@dataclass(frozen=True)
class ImageFormat:
    """An image format that every stage accepts.

    Args:
        name: As messages show it.
        suffixes: Endings of file names, in lower case, with the dot.
        media_type: As in a Content-Type header.
        module: Module that decodes it, if it may be missing.
        package: Package that brings the module, and what installs it.
    """

    name: str
    suffixes: tuple[str, ...]
    media_type: str
    module: str = ""
    package: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether what decodes it is installed here."""
        return not self.module or find_spec(self.module) is not None


IMAGE_FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg"), "image/jpeg"),
    ImageFormat("PNG", (".png",), "image/png"),
    ImageFormat("WebP", (".webp",), "image/webp"),
    ImageFormat("GIF", (".gif",), "image/gif"),
    ImageFormat("BMP", (".bmp",), "image/bmp"),
    ImageFormat("TIFF", (".tif", ".tiff"), "image/tiff"),
    ImageFormat("AVIF", (".avif",), "image/avif", "PIL._avif", "Pillow 11.3 or later"),
    ImageFormat(
        "HEIC",
        (".heic", ".heif"),
        "image/heic",
        "pillow_heif",
        "pillow-heif (uv sync --extra heic, or pip install pillow-heif)",
    ),
)


def readable_formats() -> tuple[ImageFormat, ...]:
    """Return the formats of `IMAGE_FORMATS` whose decoders are installed here."""
    return tuple(each for each in IMAGE_FORMATS if each.is_readable)


class ImageLimits(Settings):
    """Limits of the decoder, all checked before any pixel is decoded."""

    max_image_bytes: int = Field(
        25 * 1024 * 1024, ge=1, description="Largest encoded image, in bytes."
    )
    # Phones of 108 megapixels take pictures of up to 12,032 x 9,024.
    max_image_pixels: int = Field(
        109_000_000, ge=1, description="Largest image, in pixels (width times height)."
    )
    max_decode_s: float = Field(
        3,
        gt=0,
        description="Longest that decoding an image may take, in seconds of one core, as its "
        "headers predict it.",
    )
    max_decode_bytes: int = Field(
        768 * 1024 * 1024,
        ge=1024 * 1024,
        description="Most memory that decoding an image may take, in bytes, as its headers predict "
        "it.",
    )
