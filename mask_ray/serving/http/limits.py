"""Limits of one request, and the error for a request that breaks one or is malformed."""

from typing import NoReturn

from mask_ray.config import IMAGE_FORMATS, PayloadLimits

_NAMES = [image_format.name for image_format in IMAGE_FORMATS]
# As the page and the API documentation list them.
ACCEPTED_FORMATS = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"

# What an error repeats of a request, at most.
_MAX_QUOTED = 60


class PayloadError(Exception):
    """The request holds no images that are accepted. `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_num_images(num_images: int, field: str, limits: PayloadLimits) -> None:
    """Refuse too many images, with 413."""
    if num_images > limits.max_images:
        raise PayloadError(
            413, f"{field} must hold at most {limits.max_images} images; got {num_images}"
        )


def check_total_bytes(num_bytes: int, limits: PayloadLimits) -> None:
    """Refuse images that are too large together, with 413."""
    if num_bytes > limits.max_total_bytes:
        raise PayloadError(
            413,
            f"images have over {limits.max_total_bytes} bytes together; at most that are allowed",
        )


def quoted(text: str) -> str:
    """What an error may repeat of a request: its beginning, without control characters."""
    return repr(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}...")


def refuse_image_bytes(field: str, limits: PayloadLimits) -> NoReturn:
    """Refuse an image that is too large, with 413."""
    raise PayloadError(
        413, f"{field} has over {limits.max_image_bytes} bytes; at most that are allowed"
    )
