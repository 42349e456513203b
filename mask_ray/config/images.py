"""The image formats that every stage accepts, and how large an image may be."""

from dataclasses import dataclass

from pydantic import Field

from mask_ray.config.base import Settings


@dataclass(frozen=True)
class ImageFormat:
    """An image format that every stage accepts.

    Args:
        name: As messages show it.
        suffixes: Endings of file names, in lower case, with the dot.
        media_type: As in a Content-Type header.
    """

    name: str
    suffixes: tuple[str, ...]
    media_type: str


IMAGE_FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg"), "image/jpeg"),
    ImageFormat("PNG", (".png",), "image/png"),
    ImageFormat("WebP", (".webp",), "image/webp"),
    ImageFormat("GIF", (".gif",), "image/gif"),
    ImageFormat("BMP", (".bmp",), "image/bmp"),
)


class ImageLimits(Settings):
    """Limits of the decoder, all checked before any pixel is decoded."""

    max_image_bytes: int = Field(
        10 * 1024 * 1024, ge=1, description="Largest encoded image, in bytes."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Largest image, in pixels (width times height)."
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
