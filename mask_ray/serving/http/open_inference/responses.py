"""Answers under `/v2`: metadata of the server and model, and the outputs of an inference."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from mask_ray.serving.http.open_inference.requests import (
    HEADER_LENGTH,
    INPUT_NAME,
    InferRequest,
    RequestedOutput,
)


class ServerLive(BaseModel):
    """Answer of `GET /v2/health/live`."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """Answer of `GET /v2/health/ready`. Clients read only the status."""

    ready: bool


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str = "mask_ray"
    version: str
    extensions: list[str] = ["binary_tensor_data"]


class TensorMetadata(BaseModel):
    """An input or output. Sizes that vary are -1."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{name}[/versions/{version}]`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Answer of `GET /v2/models/{name}[/versions/{version}]/ready`."""

    name: str
    ready: bool


class InferError(BaseModel):
    """Body of every answer under `/v2` whose status is not 200."""

    error: str


@dataclass(frozen=True)
class InferResponse:
    """Body and headers of the answer to an `InferRequest`. Its status is 200."""

    content: bytes
    headers: dict[str, str]


def model_metadata(name: str, version: str | None, num_classes: int) -> ModelMetadata:
    """Describe the inputs of a classifier, in both forms, and its outputs."""
    return ModelMetadata(
        name=name,
        versions=[] if version is None else [version],
        platform="onnxruntime_onnx",  # Triton's name for ONNX models in ONNX Runtime.
        inputs=[
            TensorMetadata(name=INPUT_NAME, datatype="BYTES", shape=[-1]),
            TensorMetadata(name=INPUT_NAME, datatype="UINT8", shape=[-1, -1, -1, 3]),
        ],
        outputs=[
            TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, num_classes]),
            TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
        ],
    )


def infer_response(
    request: InferRequest,
    model_name: str,
    model_version: str | None,
    class_names: Sequence[str],
    probabilities: npt.NDArray[np.float32],
) -> InferResponse:
    """Build the answer with the requested outputs, in the requested form.

    Args:
        request: The request.
        model_name: Name of the model that answered.
        model_version: Its version, if it has one.
        class_names: C names.
        probabilities: Shape (N, C), one row for each image of the request.
    """
    labels = [class_names[index] for index in probabilities.argmax(axis=1)]
    described = [_described(output, probabilities, labels) for output in request.outputs]
    document = {
        "model_name": model_name,
        **({} if model_version is None else {"model_version": model_version}),
        **({} if request.id is None else {"id": request.id}),
        "outputs": [description for description, _ in described],
    }
    header = json.dumps(document).encode()
    if not any(output.is_binary for output in request.outputs):
        return InferResponse(header, {"content-type": "application/json"})
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return InferResponse(header + b"".join(data for _, data in described), headers)


def _described(
    output: RequestedOutput, probabilities: npt.NDArray[np.float32], labels: list[str]
) -> tuple[dict[str, Any], bytes]:
    """Return an output's entry in the JSON, and its binary data, which may be empty."""
    if output.name == "label":
        entry = {"name": "label", "datatype": "BYTES", "shape": [len(labels)]}
        data, values = _length_prefixed(labels), labels
    else:
        entry = {"name": output.name, "datatype": "FP32", "shape": list(probabilities.shape)}
        data, values = probabilities.astype("<f4").tobytes(), probabilities.ravel().tolist()
    if output.is_binary:
        return entry | {"parameters": {"binary_data_size": len(data)}}, data
    return entry | {"data": values}, b""


def _length_prefixed(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(item)) + item for item in encoded)
