"""Limits of one request, and the error for a request that breaks one or is malformed."""

from typing import NoReturn

from mask_ray.config import PayloadLimits, readable_formats

_NAMES = [image_format.name for image_format in readable_formats()]
# As the page and the API documentation list them.
ACCEPTED_FORMATS = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"

# Most characters of a request that an error repeats.
_MAX_QUOTED = 60


class PayloadError(Exception):
    """The request is malformed or over a limit. `status` is the HTTP status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_num_images(num_images: int, field: str, limits: PayloadLimits) -> None:
    """Raise 413 if there are too many images."""
    if num_images > limits.max_images:
        raise PayloadError(
            413, f"{field} must hold at most {limits.max_images} images; got {num_images}"
        )


def check_total_bytes(num_bytes: int, limits: PayloadLimits) -> None:
    """Raise 413 if the images are too large together."""
    if num_bytes > limits.max_total_bytes:
        raise PayloadError(
            413,
            f"images have over {limits.max_total_bytes} bytes together; at most that are allowed",
        )


def quoted(text: str) -> str:
    """Quote text of a request for an error: its beginning, with control characters escaped."""
    return repr(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}...")


def reject_image_bytes(field: str, limits: PayloadLimits) -> NoReturn:
    """Raise 413 for an image that is too large."""
    raise PayloadError(
        413, f"{field} has over {limits.max_image_bytes} bytes; at most that are allowed"
    )
