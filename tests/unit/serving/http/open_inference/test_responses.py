"""Answers of the protocol, byte for byte as its clients read them."""

import json
from typing import Any

import numpy as np
import pytest

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.open_inference.requests import (
    HEADER_LENGTH,
    InferRequest,
    RequestedOutput,
    parse_infer_request,
)
from mask_ray.serving.http.open_inference.responses import (
    InferResponse,
    infer_response,
    model_metadata,
)
from tests.support import image_files
from tests.support.infer_requests import image_input, parse_json, prefixed
from tests.support.payload_requests import text_of

FIRST, SECOND = image_files.png(), image_files.jpeg()
PROBABILITIES = np.array([[0.25, 0.75], [0.875, 0.125]], np.float32)
CLASS_NAMES = ("with_mask", "ohne_Maske_é")


def respond(request: InferRequest, version: str | None = "3") -> InferResponse:
    return infer_response(request, "mask-detector", version, CLASS_NAMES, PROBABILITIES)


def test_an_answer_in_json() -> None:
    response = respond(parse_json({"id": "42", "inputs": [image_input(data=["QQ=="])]}))

    assert response.headers == {"content-type": "application/json"}
    assert json.loads(response.content) == {
        "model_name": "mask-detector",
        "model_version": "3",
        "id": "42",
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": [0.25, 0.75, 0.875, 0.125],
            },
            {
                "name": "label",
                "datatype": "BYTES",
                "shape": [2],
                "data": ["ohne_Maske_é", "with_mask"],
            },
        ],
    }


def test_an_answer_as_binary_data() -> None:
    outputs = (RequestedOutput("label", True), RequestedOutput("probabilities", True))

    response = respond(InferRequest(None, (b"1", b"2"), outputs))

    header, data = split(response)
    labels = prefixed("ohne_Maske_é".encode(), b"with_mask")
    assert data == labels + PROBABILITIES.tobytes()
    assert response.headers["content-type"] == "application/octet-stream"
    assert [output["parameters"] for output in header["outputs"]] == [
        {"binary_data_size": len(labels)},
        {"binary_data_size": 16},
    ]
    assert not any("data" in output for output in header["outputs"])
    assert "id" not in header


def test_an_answer_of_both_kinds() -> None:
    outputs = (RequestedOutput("label", False), RequestedOutput("probabilities", True))

    header, data = split(respond(InferRequest(None, (b"1", b"2"), outputs), version=None))

    assert header["outputs"][0]["data"] == ["ohne_Maske_é", "with_mask"]
    assert data == PROBABILITIES.tobytes()
    assert "model_version" not in header


def split(response: InferResponse) -> tuple[dict[str, Any], bytes]:
    length = int(response.headers[HEADER_LENGTH])
    return json.loads(response.content[:length]), response.content[length:]


def test_model_metadata_is_as_the_protocol_has_it() -> None:
    assert model_metadata("mask-detector", "3", 2).model_dump() == {
        "name": "mask-detector",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def test_the_very_bytes_of_tritons_client() -> None:
    """What `tritonclient.http` sends where no outputs are named, and reads its answer from."""
    header = (
        b'{"inputs":[{"name":"image","shape":[2],"datatype":"BYTES","parameters":'
        b'{"binary_data_size":13}}],"parameters":{"binary_data_output":true}}'
    )
    body = header + b"\x03\x00\x00\x00ABC\x02\x00\x00\x00DE"

    request = parse_infer_request(body, "138", PayloadLimits())
    response = respond(request)

    assert request.images == (b"ABC", b"DE")
    assert response.headers[HEADER_LENGTH] == "264"
    assert response.content[264:] == (
        b"\x00\x00\x80>\x00\x00@?\x00\x00`?\x00\x00\x00>"
        b"\x0d\x00\x00\x00ohne_Maske_\xc3\xa9\x09\x00\x00\x00with_mask"
    )


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritons_client_is_understood_and_understands(is_binary: bool) -> None:
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    if is_binary:
        encoded = np.array([FIRST, SECOND], np.object_)
    else:
        encoded = np.array([text_of(FIRST), text_of(SECOND)], np.object_)
    tensor = client.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(encoded, binary_data=is_binary)
    outputs = [
        client.InferRequestedOutput(name, binary_data=is_binary)
        for name in ("label", "probabilities")
    ]
    body, length = client.InferenceServerClient.generate_request_body([tensor], outputs=outputs)

    request = parse_infer_request(body, None if length is None else str(length), PayloadLimits())
    response = respond(request)

    assert request.images == (FIRST, SECOND)
    header_length = response.headers.get(HEADER_LENGTH)
    result = client.InferenceServerClient.parse_response_body(
        response.content, header_length=header_length and int(header_length)
    )
    np.testing.assert_array_equal(result.as_numpy("probabilities"), PROBABILITIES)
    labels = [
        label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")
    ]
    assert labels == ["ohne_Maske_é", "with_mask"]
