"""Decodes base64 in the forms that clients write it in."""

import binascii

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.limits import PayloadError, quoted, reject_image_bytes

_WHITESPACE = " \t\r\n\f\v"
# RFC 4648, section 5: the alphabet for URLs and file names.
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: str | bytes | bytearray, field: str, limits: PayloadLimits) -> bytes:
    """Decode base64, standard or URL-safe, with or without line breaks and padding.

    Raises:
        PayloadError: 413, over `limits.max_image_bytes`; 422, not base64. Both name `field`.
    """
    # Checked before decoding. Padding can make this estimate two bytes too large.
    if _num_digits(text) // 4 * 3 - 2 > limits.max_image_bytes:
        reject_image_bytes(field, limits)
    try:
        decoded = _decode(text)
    except ValueError as error:
        raise PayloadError(422, f"{field} must be base64: {error}") from None
    if len(decoded) > limits.max_image_bytes:
        reject_image_bytes(field, limits)
    return decoded


def decode_data_url(text: str, field: str, limits: PayloadLimits) -> bytes:
    """Decode base64 as `decode_base64` does, or a base64 `data:` URL.

    Raises:
        PayloadError: as `decode_base64`; 422, another `data:` URL.
    """
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise PayloadError(
                422,
                f"{field} must be base64 or a data: URL such as data:image/png;base64,...; "
                f"got {quoted(header)}",
            )
    return decode_base64(text, field, limits)


def _num_digits(text: str | bytes | bytearray) -> int:
    if isinstance(text, str):
        return len(text) - sum(map(text.count, _WHITESPACE))
    return len(text) - sum(map(text.count, _WHITESPACE.encode()))


def _decode(text: str | bytes | bytearray) -> bytes:
    try:
        # Most text is of this form, which needs no copy.
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return binascii.a2b_base64(_standard(text), strict_mode=True)


def _standard(text: str | bytes | bytearray) -> bytes:
    """Write the text in the standard alphabet, without whitespace and with padding."""
    if isinstance(text, str):
        if not text.isascii():
            raise ValueError("it has characters that are not ASCII")
        text = text.encode("ascii")
    digits = bytes(text).translate(_TO_STANDARD, _WHITESPACE.encode())
    unpadded = digits.rstrip(b"=")
    missing = b"=" * (-len(unpadded) % 4)
    return unpadded + missing if digits == unpadded else digits
