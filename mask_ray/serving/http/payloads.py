"""From an HTTP request to the encoded images it carries, whichever way it carries them.

An image is the body itself, a file of a form, base64 in JSON, or behind a URL that somebody else
fetches. No byte past a limit is kept, and no more of the body is read once one is passed. Nothing
is decoded, and nothing here knows of models or Ray.
"""

import binascii
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pydantic_core
from starlette.requests import Request

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.limits import (
    PayloadError,
    check_num_images,
    check_total_bytes,
    quoted,
    refuse_image_bytes,
)
from mask_ray.serving.http.multipart import FORM_TYPE, read_form

FetchImage = Callable[[str], Awaitable[bytes]]

# The last is what `curl --data-binary` says of any body unless told otherwise.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_JSON_TYPE = "application/json"

# In JSON, beside those that are images: enough to say which keys are too many.
_MAX_OTHER_VALUES = 64


@dataclass(frozen=True)
class Payload:
    """The encoded images of one request, in its order: at least one.

    `is_list` says how to answer: with one prediction, or with a list of them. It depends on how
    the images were named, not only on how many came, so that a client knows beforehand.
    """

    images: tuple[bytes, ...]
    is_list: bool


async def read_images(
    request: Request, limits: PayloadLimits, fetch: FetchImage | None = None
) -> Payload:
    """Read the images of a request.

    One image is the raw body, the only file of a form, or JSON `{"image": base64}` or
    `{"url": "..."}`. A list is a form with several files, or with any under the name `images`, or
    JSON `{"images": [base64, ...]}`. Base64 may be a `data:` URL. URLs need `fetch`.

    Raises:
        PayloadError: 400, the form or the JSON is malformed; 413, over `limits`, declared or
            sent; 415, a body of another type, or compressed; 422, no image, or JSON of another
            shape. `fetch` raises its own.
        starlette.requests.ClientDisconnect: the client left before its body had arrived.
    """
    _check_not_compressed(request)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type.startswith("image/") or content_type in _RAW_TYPES:
        return Payload((await _read_raw(request, limits),), is_list=False)
    if content_type == FORM_TYPE:
        chunks = _chunks(request, limits.max_form_bytes, "form")
        form = await read_form(request.headers["content-type"], chunks, limits)
        return Payload(form.files(), form.is_list)
    if content_type == _JSON_TYPE:
        return await _read_json(request, limits, fetch)
    raise PayloadError(
        415,
        f"Content-Type must be image/*, application/octet-stream, {FORM_TYPE} or {_JSON_TYPE}, "
        f"or be left out; got {quoted(content_type)}",
    )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, where it is no longer than `max_bytes`.

    Raises:
        PayloadError: 413, it is longer; 415, it is compressed.
    """
    _check_not_compressed(request)
    return b"".join([chunk async for chunk in _chunks(request, max_bytes, "body")])


def decode_base64(text: str, field: str, limits: PayloadLimits) -> bytes:
    """The bytes of standard base64 with its padding, or of a base64 `data:` URL.

    Raises:
        PayloadError: 413, over `limits.max_image_bytes`; 422, not base64. Both name `field`.
    """
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise PayloadError(
                422,
                f"{field} must be base64 or a data: URL such as data:image/png;base64,...; "
                f"got {quoted(header)}",
            )
    # Before it is decoded: padding makes this at most two bytes too many.
    if len(text) // 4 * 3 - 2 > limits.max_image_bytes:
        refuse_image_bytes(field, limits)
    try:
        encoded = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise PayloadError(422, f"{field} must be base64 without line breaks: {error}") from None
    if len(encoded) > limits.max_image_bytes:
        refuse_image_bytes(field, limits)
    return encoded


def _check_not_compressed(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise PayloadError(
            415, f"Content-Encoding must be identity or be left out; got {quoted(coding)}"
        )


async def _chunks(request: Request, max_bytes: int, what: str) -> AsyncIterator[bytes]:
    """The body as it arrives. It is left off where it passes the limit, and not begun where it
    says beforehand that it will.
    """
    declared = request.headers.get("content-length", "")
    # Not int, which refuses thousands of digits in its own way.
    num_bytes = float(declared) if declared.isdecimal() else 0
    if num_bytes <= max_bytes:
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
            yield chunk
    if num_bytes > max_bytes:
        raise PayloadError(413, f"{what} has over {max_bytes} bytes; at most that are allowed")


async def _read_raw(request: Request, limits: PayloadLimits) -> bytes:
    chunks = _chunks(request, limits.max_image_bytes, "image")
    return b"".join([chunk async for chunk in chunks])


async def _read_json(request: Request, limits: PayloadLimits, fetch: FetchImage | None) -> Payload:
    chunks = _chunks(request, limits.max_json_bytes, "JSON body")
    body = b"".join([chunk async for chunk in chunks])
    _check_num_values(body, 2 * limits.max_images + _MAX_OTHER_VALUES)
    key, value = _only_entry(_parse_json(body), fetch)
    if key == "images":
        return Payload(_decode_list(value, limits), is_list=True)
    text = _string(value, key)
    if key == "url" and fetch is not None:
        return Payload((await fetch(text),), is_list=False)
    return Payload((decode_base64(text, key, limits),), is_list=False)


def _check_num_values(body: bytes, max_values: int) -> None:
    """Refuse JSON that is made of very many small values, before it is parsed.

    Those that fit into the limit in bytes would take a gigabyte. Between any two is a comma; an
    image that is a data: URL has one of its own.
    """
    if body.count(b",") > max_values:
        raise PayloadError(
            413, f"JSON body must hold one image, or a list; got over {max_values} values"
        )


def _parse_json(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body)
    except ValueError as error:
        raise PayloadError(400, f"body is not JSON: {error}") from None


def _only_entry(document: Any, fetch: FetchImage | None) -> tuple[str, Any]:
    allowed = ("image", "images") if fetch is None else ("image", "images", "url")
    expected = f"JSON body must be an object with exactly one key of {', '.join(allowed)}"
    if not isinstance(document, dict):
        raise PayloadError(422, f"{expected}; got {_kind(document)}")
    if "url" in document and fetch is None:
        raise PayloadError(422, f"{expected} (images are not fetched from URLs here); got url")
    if len(document) != 1 or not document.keys() <= set(allowed):
        came = ", ".join(quoted(key) for key in list(document)[:5]) or "an empty object"
        more = f" and {len(document) - 5} more" if len(document) > 5 else ""
        raise PayloadError(422, f"{expected}; got {came}{more}")
    return next(iter(document.items()))


def _decode_list(value: Any, limits: PayloadLimits) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        came = "an empty list" if value == [] else _kind(value)
        raise PayloadError(422, f"images must be a list of one or more base64 strings; got {came}")
    check_num_images(len(value), "images", limits)
    images: list[bytes] = []
    num_bytes = 0
    for index, item in enumerate(value):
        field = f"images[{index}]"
        images.append(decode_base64(_string(item, field), field, limits))
        num_bytes += len(images[-1])
        check_total_bytes(num_bytes, limits)
    return tuple(images)


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise PayloadError(422, f"{field} must be a string; got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """What JSON calls it. The value itself may be of any size."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
