"""Requests of the Open Inference Protocol, as its clients write them."""

import json
import struct
from typing import Any

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.open_inference.requests import InferRequest, parse_infer_request


def image_input(**fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1], "datatype": "BYTES"} | fields


def prefixed(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def parse_json(document: Any, limits: PayloadLimits | None = None) -> InferRequest:
    return parse_infer_request(json.dumps(document).encode(), None, limits or PayloadLimits())


def parse_binary(
    tensor: dict[str, Any], data: bytes, limits: PayloadLimits | None = None, **rest: Any
) -> InferRequest:
    """As clients send binary data: the JSON, its length in a header, and the data after it."""
    tensor = {"parameters": {"binary_data_size": len(data)}} | tensor
    header = json.dumps({"inputs": [tensor], **rest}).encode()
    return parse_infer_request(header + data, str(len(header)), limits or PayloadLimits())
