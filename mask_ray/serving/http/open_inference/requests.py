"""Reads inference requests of the Open Inference Protocol, version 2, under `/v2`.

The protocol: https://github.com/kserve/open-inference-protocol,
specification/protocol/inference_rest.md. Clients of Triton and KServe use its binary tensor data
extension by default: https://github.com/triton-inference-server/server,
docs/protocol/extension_binary_data.md.

A request has one input, `image`, in one of two forms:

- BYTES of shape [N]: N encoded images. As binary data, each follows its length in 4 bytes, little
  endian. In JSON, each is base64 or a base64 `data:` URL. The protocol does not say how JSON
  carries bytes (its issue 12). Triton and KServe take the string itself, as UTF-8, which cannot
  hold an image, so no request that works there means something else here.
- UINT8 of shape [N, height, width, 3]: N images of one size, RGB, upright. In JSON flat, or nested
  like the shape.

No HTTP servers, models or Ray here.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError

from mask_ray.config import PayloadLimits
from mask_ray.images.decode import RGBArray
from mask_ray.serving.http.base64_text import decode_data_url
from mask_ray.serving.http.limits import (
    PayloadError,
    check_num_images,
    check_total_bytes,
    quoted,
)

HEADER_LENGTH = "Inference-Header-Content-Length"

INPUT_NAME = "image"
_OUTPUTS = ("probabilities", "label")
_MAX_ID_CHARACTERS = 1_024
# Pixels of 13 images of 224 px.
_MAX_JSON_VALUES = 2_000_000
# Nested as their shape: a list for each pixel of three values, for each row, and for each image.
_MAX_JSON_LISTS = _MAX_JSON_VALUES // 3 + 20_000
# A request has eight objects with some thirty keys. Texts may hold these characters too.
_MAX_JSON_OBJECTS = 2_048
_MAX_JSON_KEYS = 4_096
# Tensors of the request, and dimensions of one. One of each is right; an error names some.
_MAX_TENSORS = 16
# What a value takes once it is parsed: in the parser's tree, and as an object of Python.
_VALUE_BYTES = 72
_LIST_BYTES = 200
# Most mistakes that one error lists.
_MAX_MISTAKES = 3


@dataclass(frozen=True)
class RequestedOutput:
    """A requested output, as binary data or in JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A valid request: encoded images, or RGB pixels as uint8 of shape (height, width, 3)."""

    id: str | None
    images: tuple[bytes, ...] | tuple[RGBArray, ...]
    outputs: tuple[RequestedOutput, ...]


def check_model(
    name: str, version: str | None, requested_name: str, requested_version: str | None = None
) -> None:
    """Check that a path names the served model and version.

    Raises:
        PayloadError: 404, it names another.
    """
    if requested_name != name:
        raise PayloadError(404, f"model must be {name}; got {quoted(requested_name)}")
    if requested_version is not None and requested_version != version:
        allowed = "left out" if version is None else version
        raise PayloadError(404, f"version must be {allowed}; got {quoted(requested_version)}")


def parse_infer_request(
    body: bytes,
    header_length: str | None,
    limits: PayloadLimits,
    hold: Callable[[int], None] = lambda _: None,
) -> InferRequest:
    """Read and check a request.

    Args:
        body: JSON, followed by binary data if there is a `header_length`. Its limit,
            `limits.max_json_bytes`, fits all images that `limits` allows, except UINT8 in JSON.
        header_length: Value of the header `HEADER_LENGTH`, the length of the JSON in bytes; None
            if the header is missing.
        limits: Limits of encoded images, and of pixels.
        hold: Called with the bytes that the values will take, before they are parsed.

    Raises:
        PayloadError: 413, over `limits`; 400, any other mistake.
        Exception: what `hold` raises.
    """
    num_json_bytes = _num_json_bytes(header_length, len(body))
    text = body[:num_json_bytes]
    hold(_check_num_values(text))
    document = _document(text)
    tensor = _only_input(document.inputs)
    binary = _binary_data(tensor, memoryview(body)[num_json_bytes:])
    outputs = _requested_outputs(document)
    return InferRequest(document.id, _images(tensor, binary, limits), outputs)


# 64 bits, as in the protocol, which also keeps errors that repeat a size short.
_Size = Annotated[StrictInt, Field(ge=0, lt=2**63)]


class _Parameters(BaseModel):
    """Parameters that this server reads. Others are ignored."""

    binary_data: StrictBool | None = None
    binary_data_output: StrictBool | None = None
    binary_data_size: _Size | None = None
    # Not supported. Rejected, because a client would misread an answer that ignores them.
    shared_memory_region: Any = None
    classification: Any = None


class _Input(BaseModel):
    name: StrictStr
    shape: Annotated[list[_Size], Field(max_length=_MAX_TENSORS, fail_fast=True)]
    datatype: StrictStr
    parameters: _Parameters | None = None
    data: list[Any] | None = None


class _Output(BaseModel):
    name: StrictStr
    parameters: _Parameters | None = None


class _Document(BaseModel):
    id: StrictStr | None = Field(None, max_length=_MAX_ID_CHARACTERS)
    parameters: _Parameters | None = None
    inputs: Annotated[list[_Input], Field(max_length=_MAX_TENSORS, fail_fast=True)]
    outputs: Annotated[list[_Output], Field(max_length=_MAX_TENSORS, fail_fast=True)] | None = None


def _num_json_bytes(header_length: str | None, num_body_bytes: int) -> int:
    if header_length is None:
        return num_body_bytes
    # No body is longer than nine digits, and int raises an error of its own on thousands.
    is_number = header_length.isdecimal() and len(header_length) <= 9
    if not is_number or int(header_length) > num_body_bytes:
        raise PayloadError(
            400,
            f"{HEADER_LENGTH} must be the number of bytes of JSON in the body's "
            f"{num_body_bytes}; got {quoted(header_length)}",
        )
    return int(header_length)


def _check_num_values(text: bytes) -> int:
    """Raise 413 for too many values, lists, objects or keys, before any of them is made.

    They are counted by the characters that they cannot do without, wherever these stand. Returns
    the bytes that they will take.
    """
    num_values, num_lists = text.count(b","), text.count(b"[")
    if num_values > _MAX_JSON_VALUES or num_lists > _MAX_JSON_LISTS:
        raise PayloadError(
            413,
            f"JSON must hold at most {_MAX_JSON_VALUES} values in {_MAX_JSON_LISTS} lists; larger "
            "tensors must come as binary data",
        )
    if text.count(b"{") > _MAX_JSON_OBJECTS or text.count(b":") > _MAX_JSON_KEYS:
        raise PayloadError(
            413, f"JSON must hold at most {_MAX_JSON_OBJECTS} objects with {_MAX_JSON_KEYS} keys"
        )
    return num_values * _VALUE_BYTES + num_lists * _LIST_BYTES


def _document(text: bytes) -> _Document:
    try:
        return _Document.model_validate_json(text)
    except ValidationError as error:
        # Without the values, which can be of any size.
        mistakes = error.errors(include_url=False, include_input=False, include_context=False)
        clauses = [f"{_field(mistake['loc'])}: {mistake['msg']}" for mistake in mistakes]
        more = f"; and {len(clauses) - _MAX_MISTAKES} more" if len(clauses) > _MAX_MISTAKES else ""
        raise PayloadError(400, "; ".join(clauses[:_MAX_MISTAKES]) + more) from None


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "request"


def _only_input(inputs: list[_Input]) -> _Input:
    if len(inputs) != 1 or inputs[0].name != INPUT_NAME:
        names = ", ".join(quoted(tensor.name) for tensor in inputs[:5]) or "none"
        raise PayloadError(400, f"inputs must be one tensor named {INPUT_NAME}; got {names}")
    tensor = inputs[0]
    _reject_shared_memory(tensor.parameters, "input")
    return tensor


def _reject_shared_memory(parameters: _Parameters | None, where: str) -> None:
    if parameters is not None and parameters.shared_memory_region is not None:
        raise PayloadError(400, f"{where} must come in the body; got shared_memory_region")


def _binary_data(tensor: _Input, after_json: memoryview) -> memoryview | None:
    """Return the bytes after the JSON, if the input says that its data is there."""
    size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
    if size is None and not after_json:
        return None
    if size != len(after_json):
        raise PayloadError(
            400,
            f"binary_data_size of {INPUT_NAME} must be the number of bytes after the JSON, which "
            f"{HEADER_LENGTH} gives: {len(after_json)}; got {size}",
        )
    if tensor.data is not None:
        raise PayloadError(400, f"{INPUT_NAME} must have data or binary_data_size; got both")
    return after_json


def _requested_outputs(document: _Document) -> tuple[RequestedOutput, ...]:
    """Return the requested outputs, or all. Whether they are binary, each says, or the request."""
    is_binary = bool(document.parameters and document.parameters.binary_data_output)
    if not document.outputs:
        return tuple(RequestedOutput(name, is_binary) for name in _OUTPUTS)
    names = [output.name for output in document.outputs]
    if len(set(names)) != len(names) or not set(names) <= set(_OUTPUTS):
        received = ", ".join(map(quoted, names[:5]))
        raise PayloadError(
            400, f"outputs must be of {', '.join(_OUTPUTS)}, each at most once; got {received}"
        )
    return tuple(_requested_output(output, is_binary) for output in document.outputs)


def _requested_output(output: _Output, is_binary: bool) -> RequestedOutput:
    parameters = output.parameters or _Parameters()
    _reject_shared_memory(parameters, f"output {output.name}")
    if parameters.classification:
        raise PayloadError(
            400, "classification is not supported: ask for the outputs label and probabilities"
        )
    if parameters.binary_data is not None:
        is_binary = parameters.binary_data
    return RequestedOutput(output.name, is_binary)


def _images(
    tensor: _Input, binary: memoryview | None, limits: PayloadLimits
) -> tuple[bytes, ...] | tuple[RGBArray, ...]:
    if tensor.data is None and binary is None:
        raise PayloadError(400, f"{INPUT_NAME} must have data or binary_data_size; got neither")
    if tensor.datatype == "BYTES":
        _check_shape(tensor, num_dimensions=1, limits=limits)
        if binary is not None:
            return _split_binary(binary, tensor.shape[0], limits)
        return _decode_strings(tensor.data or [], tensor.shape[0], limits)
    if tensor.datatype == "UINT8":
        _check_shape(tensor, num_dimensions=4, limits=limits)
        _check_pixels(tensor.shape, limits)
        if binary is not None:
            return _pixels_of_binary(binary, tensor.shape)
        return _pixels_of_json(tensor.data or [], tensor.shape)
    raise PayloadError(
        400, f"datatype of {INPUT_NAME} must be BYTES or UINT8; got {quoted(tensor.datatype)}"
    )


def _check_shape(tensor: _Input, num_dimensions: int, limits: PayloadLimits) -> None:
    shape = tensor.shape
    is_allowed = len(shape) == num_dimensions and min(shape, default=0) >= 1
    if not is_allowed or (num_dimensions == 4 and shape[3] != 3):
        allowed = "[N]" if num_dimensions == 1 else "[N, height, width, 3]"
        raise PayloadError(
            400,
            f"shape of {INPUT_NAME} must be {allowed} for {tensor.datatype}, with none of them 0; "
            f"got {quoted(str(shape[:9]))}",
        )
    check_num_images(shape[0], INPUT_NAME, limits)


def _check_pixels(shape: list[int], limits: PayloadLimits) -> None:
    _, height, width, _ = shape
    max_pixels = min(limits.max_image_pixels, limits.max_image_bytes // 3)
    if height * width > max_pixels:
        raise PayloadError(
            413,
            f"shape of {INPUT_NAME} must hold at most {max_pixels} pixels an image; "
            f"got {quoted(str(shape))}",
        )
    check_total_bytes(math.prod(shape), limits)


def _split_binary(binary: memoryview, num_images: int, limits: PayloadLimits) -> tuple[bytes, ...]:
    images: list[bytes] = []
    at = 0
    while at < len(binary) and len(images) < num_images:
        end = at + 4 + _length_at(binary, at)
        if end > len(binary):
            break
        _check_image_bytes(end - at - 4, len(images), limits)
        images.append(bytes(binary[at + 4 : end]))
        at = end
    if at != len(binary) or len(images) != num_images:
        raise PayloadError(
            400,
            f"binary data of {INPUT_NAME} must be {num_images} images as its shape says, each with "
            f"its length before it in 4 bytes; got {len(images)} and then {len(binary) - at} bytes",
        )
    check_total_bytes(sum(map(len, images)), limits)
    return tuple(images)


def _length_at(binary: memoryview, at: int) -> int:
    if at + 4 > len(binary):
        return len(binary)
    (length,) = struct.unpack_from("<I", binary, at)
    return int(length)


def _check_image_bytes(num_bytes: int, index: int, limits: PayloadLimits) -> None:
    if num_bytes > limits.max_image_bytes:
        raise PayloadError(
            413,
            f"{INPUT_NAME}[{index}] has {num_bytes} bytes; at most {limits.max_image_bytes} are "
            "allowed",
        )


def _decode_strings(data: list[Any], num_images: int, limits: PayloadLimits) -> tuple[bytes, ...]:
    if len(data) != num_images or not all(isinstance(item, str) for item in data):
        raise PayloadError(
            400,
            f"data of {INPUT_NAME} must be {num_images} strings of base64 as its shape says; "
            f"got {len(data)} items{'' if len(data) != num_images else ' of other kinds'}",
        )
    images: list[bytes] = []
    for index, text in enumerate(data):
        try:
            images.append(decode_data_url(text, f"{INPUT_NAME}[{index}]", limits))
        except PayloadError as error:
            # The protocol answers malformed requests with 400.
            raise PayloadError(413 if error.status == 413 else 400, str(error)) from None
        check_total_bytes(sum(map(len, images)), limits)
    return tuple(images)


def _pixels_of_binary(binary: memoryview, shape: list[int]) -> tuple[RGBArray, ...]:
    if len(binary) != math.prod(shape):
        raise PayloadError(
            400,
            f"binary data of {INPUT_NAME} must have {math.prod(shape)} bytes as its shape says; "
            f"got {len(binary)}",
        )
    return tuple(np.frombuffer(binary, np.uint8).reshape(shape))


def _pixels_of_json(data: list[Any], shape: list[int]) -> tuple[RGBArray, ...]:
    try:
        # float64 takes eight bytes an item. Without a type, numpy would give each item the room of
        # the longest string.
        values = np.array(data, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise PayloadError(400, f"data of {INPUT_NAME} must be numbers, flat or nested") from None
    if values.shape not in ((math.prod(shape),), tuple(shape)):
        raise PayloadError(
            400,
            f"data of {INPUT_NAME} must be flat or nested as its shape {shape} says; "
            f"got shape {list(values.shape)}",
        )
    # Written so that NaN, which null becomes, fails too.
    if not np.all((values >= 0) & (values <= 255) & (values % 1 == 0)):
        raise PayloadError(400, f"data of {INPUT_NAME} must be whole numbers of 0 to 255")
    return tuple(values.astype(np.uint8).reshape(shape))
