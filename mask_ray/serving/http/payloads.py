"""Reads the encoded images of a request, in any of the forms that clients can send them.

An image is the body itself, a file of a form, base64 in JSON, or a URL that `fetch` loads. Bytes
over a limit are not kept, and the rest of the body is not read. No image is decoded here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pydantic_core
from starlette.requests import Request

from mask_ray.config import BODY_COPIES, PayloadLimits
from mask_ray.serving.http.base64_text import decode_data_url
from mask_ray.serving.http.limits import (
    PayloadError,
    check_num_images,
    check_total_bytes,
    quoted,
)
from mask_ray.serving.http.multipart import FORM_TYPE, read_form
from mask_ray.serving.http.request_memory import hold

FetchImage = Callable[[str], Awaitable[bytes]]

# Object stores keep files without a type as binary/octet-stream. The last is the default of
# `curl --data-binary`.
_RAW_TYPES = (
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/x-www-form-urlencoded",
)
_JSON_TYPE = "application/json"

# Values of JSON that are not images: enough for an error to name the extra keys.
_MAX_OTHER_VALUES = 64


@dataclass(frozen=True)
class Payload:
    """The encoded images of one request, in its order; at least one.

    `is_list`: whether to answer with a list of predictions or with one. It depends on how the
    images were named, not only on their number, so that a client knows the form in advance.
    """

    images: tuple[bytes, ...]
    is_list: bool


async def read_images(
    request: Request, limits: PayloadLimits, fetch: FetchImage | None = None
) -> Payload:
    """Read the images of a request.

    One image is the raw body, the only file of a form, or JSON `{"image": base64}` or
    `{"url": "..."}`. A list is a form with several files, or with any under the name `images`, or
    JSON `{"images": [base64, ...]}`. Base64 may be URL-safe, have line breaks, lack its padding, or
    be a `data:` URL. URLs need `fetch`.

    Raises:
        PayloadError: 400, malformed form or JSON; 413, over `limits`, as declared or as received;
            415, another content type, or compressed; 422, no image, or JSON of another shape.
            Errors of `fetch` pass through.
        OverBudgetError: the replica has no memory for the body now.
        starlette.requests.ClientDisconnect: the client left before the body had arrived.
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
    """Read the whole body.

    Raises:
        PayloadError: 413, it is longer than `max_bytes`; 415, it is compressed.
    """
    _check_not_compressed(request)
    return b"".join([chunk async for chunk in _chunks(request, max_bytes, "body")])


def _check_not_compressed(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise PayloadError(
            415, f"Content-Encoding must be identity or be left out; got {quoted(coding)}"
        )


async def _chunks(request: Request, max_bytes: int, what: str) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, up to the limit. A body declared longer is not read at all."""
    declared = request.headers.get("content-length", "")
    # float and not int, which raises an error of its own on thousands of digits.
    num_bytes = float(declared) if declared.isdecimal() else 0
    if num_bytes <= max_bytes:
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
            hold(request.scope, BODY_COPIES * len(chunk))
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
        hold(request.scope, BODY_COPIES * limits.max_image_bytes)
        return Payload((await fetch(text),), is_list=False)
    return Payload((decode_data_url(text, key, limits),), is_list=False)


def _check_num_values(body: bytes, max_values: int) -> None:
    """Raise 413 for JSON of very many small values, before it is parsed.

    Within the limit in bytes they could take a gigabyte. The number of commas bounds the number of
    values; an image that is a data: URL has one more comma.
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
        raise PayloadError(422, f"{expected}; got {_json_type(document)}")
    if "url" in document and fetch is None:
        raise PayloadError(422, f"{expected} (images are not fetched from URLs here); got url")
    if len(document) != 1 or not document.keys() <= set(allowed):
        received = ", ".join(quoted(key) for key in list(document)[:5]) or "an empty object"
        more = f" and {len(document) - 5} more" if len(document) > 5 else ""
        raise PayloadError(422, f"{expected}; got {received}{more}")
    return next(iter(document.items()))


def _decode_list(value: Any, limits: PayloadLimits) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        received = "an empty list" if value == [] else _json_type(value)
        raise PayloadError(
            422, f"images must be a list of one or more base64 strings; got {received}"
        )
    check_num_images(len(value), "images", limits)
    images: list[bytes] = []
    num_bytes = 0
    for index, item in enumerate(value):
        field = f"images[{index}]"
        images.append(decode_data_url(_string(item, field), field, limits))
        num_bytes += len(images[-1])
        check_total_bytes(num_bytes, limits)
    return tuple(images)


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise PayloadError(422, f"{field} must be a string; got {_json_type(value)}")
    return value


def _json_type(value: Any) -> str:
    """Name the type of a value in JSON's words. The value itself may be too long for an error."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
