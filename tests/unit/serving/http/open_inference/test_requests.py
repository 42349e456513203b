"""Requests of the protocol, byte for byte as its clients send them."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.limits import PayloadError
from mask_ray.serving.http.open_inference.requests import (
    HEADER_LENGTH,
    RequestedOutput,
    check_model,
    parse_infer_request,
)
from tests.support import image_files
from tests.support.infer_requests import (
    image_input,
    parse_binary,
    parse_json,
    prefixed,
)
from tests.support.payload_requests import text_of

FIRST, SECOND = image_files.png(), image_files.jpeg()
PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
SMALL = PayloadLimits(max_image_bytes=60, max_total_bytes=100, max_images=2)


def refusal(parse: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(PayloadError) as caught:
        parse(*arguments, **options)
    message = str(caught.value)
    assert len(message) < 400
    return caught.value.status, message


def test_encoded_images_as_binary_data() -> None:
    request = parse_binary(image_input(shape=[2]), prefixed(FIRST, SECOND), id="42")

    assert request.images == (FIRST, SECOND)
    assert request.id == "42"


def test_encoded_images_as_base64_in_json() -> None:
    texts = [text_of(FIRST), f"data:image/jpeg;base64,{text_of(SECOND)}"]

    request = parse_json({"inputs": [image_input(shape=[2], data=texts)]})

    assert request.images == (FIRST, SECOND)
    assert request.id is None


def test_pixels_as_binary_data() -> None:
    tensor = image_input(shape=[2, 4, 5, 3], datatype="UINT8")

    images = parse_binary(tensor, PIXELS.tobytes()).images

    assert len(images) == 2
    np.testing.assert_array_equal(np.stack(images), PIXELS)


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.ravel().tolist()])
def test_pixels_as_json_nested_or_flat(data: list[Any]) -> None:
    tensor = image_input(shape=[2, 4, 5, 3], datatype="UINT8", data=data)

    images = parse_json({"inputs": [tensor]}).images

    assert {image.dtype for image in images} == {np.dtype(np.uint8)}  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.stack(images), PIXELS)


def test_what_other_servers_understand_is_passed_over() -> None:
    """Optional members may be null, and parameters that mean nothing here may be there."""
    tensor = image_input(data=["QQ=="], parameters={"content_type": "base64", "headers": None})
    document = {
        "id": None,
        "model_name": "other",
        "parameters": {"priority": 1, "sequence_id": 7},
        "inputs": [tensor],
        "outputs": None,
    }

    assert parse_json(document).images == (b"A",)


@pytest.mark.parametrize(
    ("rest", "outputs"),
    [
        ({}, [("probabilities", False), ("label", False)]),
        ({"outputs": []}, [("probabilities", False), ("label", False)]),
        (
            {"parameters": {"binary_data_output": True}},
            [("probabilities", True), ("label", True)],
        ),
        ({"outputs": [{"name": "label"}]}, [("label", False)]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "label"},
                    {"name": "probabilities", "parameters": {"binary_data": False}},
                ],
            },
            [("label", True), ("probabilities", False)],
        ),
    ],
)
def test_outputs_are_as_asked_for(rest: Any, outputs: list[tuple[str, bool]]) -> None:
    request = parse_json({"inputs": [image_input(data=["QQ=="])], **rest})

    assert request.outputs == tuple(RequestedOutput(*output) for output in outputs)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "request: Input should be an object"),
        ({}, "inputs: Field required"),
        ({"inputs": []}, "one tensor named image; got none"),
        ({"inputs": [image_input(name="x" * 999)]}, "one tensor named image; got 'xxx"),
        ({"inputs": [image_input()] * 2}, "one tensor named image; got 'image', 'image'"),
        ({"inputs": [image_input()]}, "data or binary_data_size; got neither"),
        ({"inputs": [image_input(data="QQ==")]}, "inputs.0.data: Input should be a valid array"),
        ({"inputs": [image_input(shape=["1"], data=[])]}, "inputs.0.shape.0: "),
        ({"inputs": [image_input(shape=[2**63], data=[])]}, "inputs.0.shape.0: "),
        ({"inputs": [image_input(shape=["1"] * 99, data=[])]}, "inputs.0.shape.0: "),
        ({"inputs": [{}], "outputs": [{}]}, "; and 1 more"),
        ({"inputs": [image_input(shape=[-1], data=[])]}, "inputs.0.shape.0: "),
        ({"inputs": [image_input(shape=[0], data=[])]}, "must be [N] for BYTES"),
        ({"inputs": [image_input(shape=[1, 1], data=["QQ=="])]}, "[N] for BYTES, with none"),
        ({"inputs": [image_input(shape=[], data=["QQ=="])]}, "got '[]'"),
        ({"inputs": [image_input(shape=[2], data=["QQ=="])]}, "2 strings of base64"),
        ({"inputs": [image_input(data=[1])]}, "1 items of other kinds"),
        ({"inputs": [image_input(data=["not base64"])]}, "image[0] must be base64"),
        ({"inputs": [image_input(datatype="FP32", data=[1.0])]}, "BYTES or UINT8; got 'FP32'"),
        ({"inputs": [image_input(data=["QQ=="])], "id": 7}, "id: Input should be a valid string"),
        ({"inputs": [image_input(data=["QQ=="])], "id": "x" * 9999}, "at most 1024 characters"),
        ({"inputs": [image_input(data=["QQ=="])], "outputs": [{"name": "x"}]}, "got 'x'"),
        (
            {"inputs": [image_input(data=["QQ=="])], "outputs": [{"name": "label"}] * 9},
            "each at most once",
        ),
        (
            {"inputs": [image_input(parameters={"shared_memory_region": "r"})]},
            "input must come in the body",
        ),
        (
            {
                "inputs": [image_input(data=["QQ=="])],
                "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}],
            },
            "classification is not supported",
        ),
        (
            {"inputs": [image_input(parameters={"binary_data_size": 5})]},
            "number of bytes after the JSON, which Inference-Header-Content-Length gives: 0; got 5",
        ),
        (
            {"inputs": [image_input(data=["QQ=="], parameters={"binary_data_size": 0})]},
            "data or binary_data_size; got both",
        ),
    ],
)
def test_requests_of_another_shape_are_refused(document: Any, reason: str) -> None:
    status, message = refusal(parse_json, document)

    assert (status, reason in message) == (400, True), message


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 9999, b"\xff" * 9999])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    status, message = refusal(parse_infer_request, body, None, PayloadLimits())

    assert (status, "Invalid JSON" in message) == (400, True)


@pytest.mark.parametrize("header_length", ["", "-1", "1.5", "x" * 999, "9" * 9999, "31"])
def test_a_length_of_json_that_cannot_be_is_refused(header_length: str) -> None:
    status, message = refusal(parse_infer_request, b"{}" * 15, header_length, PayloadLimits())

    assert (status, HEADER_LENGTH in message) == (400, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        prefixed(FIRST),
        prefixed(FIRST, SECOND, FIRST),
        prefixed(FIRST, SECOND) + b"1",
        prefixed(FIRST, SECOND)[:-1],
        prefixed(FIRST) + b"\xff\xff\xff\xff",
    ],
)
def test_binary_data_that_is_not_its_images_is_refused(data: bytes) -> None:
    status, message = refusal(parse_binary, image_input(shape=[2]), data)

    assert (status, "must be 2 images as its shape says" in message) == (400, True)


def test_the_size_of_binary_data_must_be_right() -> None:
    wrong = image_input(parameters={"binary_data_size": 4})
    assert "after the JSON" in refusal(parse_binary, wrong, prefixed(FIRST))[1]
    missing = image_input(parameters={}, data=["QQ=="])
    assert "got None" in refusal(parse_binary, missing, prefixed(FIRST))[1]


@pytest.mark.parametrize(
    ("shape", "data", "reason"),
    [
        ([1, 1, 3], [1, 2, 3], "must be [N, height, width, 3] for UINT8"),
        ([1, 1, 1, 4], [1, 2, 3, 4], "must be [N, height, width, 3] for UINT8"),
        ([1, 0, 1, 3], [], "with none of them 0"),
        ([1, 1, 1, 3], [1, 2], "got shape [2]"),
        ([1, 1, 1, 3], [[1, 2, 3]], "got shape [1, 3]"),
        ([1, 1, 1, 3], [1, [2, 3]], "must be numbers, flat or nested"),
        ([1, 1, 1, 3], [1, 2, "x" * 9999], "must be numbers, flat or nested"),
        ([1, 1, 1, 3], [1, 2, {}], "must be numbers, flat or nested"),
        ([1, 1, 1, 3], [1, 2, 10**400], "must be numbers, flat or nested"),
        ([1, 1, 1, 3], [1, 2, 256], "whole numbers of 0 to 255"),
        ([1, 1, 1, 3], [1, 2, -1], "whole numbers of 0 to 255"),
        ([1, 1, 1, 3], [1, 2, 0.5], "whole numbers of 0 to 255"),
        ([1, 1, 1, 3], [1, 2, None], "whole numbers of 0 to 255"),
    ],
)
def test_pixels_that_are_none_are_refused(shape: list[int], data: list[Any], reason: str) -> None:
    tensor = image_input(shape=shape, datatype="UINT8", data=data)

    status, message = refusal(parse_json, {"inputs": [tensor]})

    assert (status, reason in message) == (400, True), message


def test_pixels_of_another_number_of_bytes_are_refused() -> None:
    tensor = image_input(shape=[2, 4, 5, 3], datatype="UINT8")

    status, message = refusal(parse_binary, tensor, PIXELS.tobytes()[:-1])

    assert (status, "must have 120 bytes as its shape says; got 119" in message) == (400, True)


def test_the_limits_hold_for_encoded_images() -> None:
    assert len(parse_binary(image_input(), prefixed(b"1" * 60), SMALL).images) == 1
    too_long = refusal(parse_binary, image_input(), prefixed(b"1" * 61), SMALL)
    assert too_long == (413, "image[0] has 61 bytes; at most 60 are allowed")
    together = refusal(parse_binary, image_input(shape=[2]), prefixed(b"1" * 60, b"1" * 60), SMALL)
    assert (together[0], "100 bytes together" in together[1]) == (413, True)
    too_many = refusal(parse_binary, image_input(shape=[3]), prefixed(b"", b"", b""), SMALL)
    assert too_many == (413, "image must hold at most 2 images; got 3")

    in_json = image_input(data=[text_of(b"1" * 61)])
    assert refusal(parse_json, {"inputs": [in_json]}, SMALL)[0] == 413
    together_in_json = image_input(shape=[2], data=[text_of(b"1" * 60)] * 2)
    assert refusal(parse_json, {"inputs": [together_in_json]}, SMALL)[0] == 413


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ([1, 4, 6, 3], "at most 20 pixels an image; got '[1, 4, 6, 3]'"),
        ([1, 2**62, 2**62, 3], "at most 20 pixels an image"),
        ([2, 4, 5, 3], "100 bytes together"),
        ([2**62, 1, 1, 3], "at most 2 images"),
    ],
)
def test_the_limits_hold_for_pixels_before_they_are_read(shape: list[int], reason: str) -> None:
    status, message = refusal(
        parse_binary, image_input(shape=shape, datatype="UINT8"), b"123", SMALL
    )

    assert (status, reason in message) == (413, True), message


def test_only_the_model_that_is_served_has_a_path() -> None:
    check_model("mask-detector", "3", "mask-detector")
    check_model("mask-detector", "3", "mask-detector", "3")
    assert refusal(check_model, "mask-detector", "3", "other") == (
        404,
        "model must be mask-detector; got 'other'",
    )
    assert refusal(check_model, "mask-detector", "3", "mask-detector", "2")[0] == 404
    assert "must be left out" in refusal(check_model, "file", None, "file", "1")[1]


def test_tritons_client_sends_pixels() -> None:
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    tensor = client.InferInput("image", [2, 4, 5, 3], "UINT8")
    tensor.set_data_from_numpy(PIXELS)
    body, length = client.InferenceServerClient.generate_request_body([tensor])

    request = parse_infer_request(body, str(length), PayloadLimits())

    np.testing.assert_array_equal(np.stack(request.images), PIXELS)
    assert all(output.is_binary for output in request.outputs)


def test_json_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    status, message = refusal(
        parse_infer_request, b"0," * 2_000_001, None, PayloadLimits(max_total_bytes=10**8)
    )

    assert (status, "binary data" in message) == (413, True)


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (b'{"inputs":[' + b"{}," * 500_000 + b"{}]}", 413, "at most 2048 objects with 4096 keys"),
        (b'{"inputs":[' + b"{}," * 2_000 + b"{}]}", 400, "inputs"),
        (b'{"inputs":[{}],"outputs":[' + b"{}," * 2_000 + b"{}]}", 400, "; and 1 more"),
        (b"{" + b'"a":1,' * 500_000 + b'"b":1}', 413, "4096 keys"),
        (b'{"inputs":[{"shape":[' + b"x," * 100_000 + b"1]}]}", 400, ""),
        (b'{"inputs":[{"shape":[' + b'"1",' * 100_000 + b"1]}]}", 400, "inputs.0.shape.0: "),
        (b'{"inputs":[{"shape":[' + b"1," * 100_000 + b"1]}]}", 400, "at most 16 items"),
        (b'{"inputs":[{"data":[' + b"[]," * 1_000_000 + b"1]}]}", 413, "values in 686666 lists"),
        (b"[" * 500_000, 400, ""),
    ],
    ids=["inputs", "some inputs", "outputs", "keys", "junk", "shape", "sizes", "lists", "depth"],
)
def test_very_many_of_anything_are_refused_at_the_first_fault(
    text: bytes, status: int, reason: str
) -> None:
    held: list[int] = []
    tracemalloc.start()
    try:
        answer = refusal(parse_infer_request, text, None, PayloadLimits(), held.append)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer[0] == status
    assert reason in answer[1]
    assert answer[1].count(";") <= 3
    # Not a figure of a machine: at most what was held before the parse, and room for the errors.
    assert peak_bytes < sum(held) + len(text) + 500_000


def test_what_values_will_take_is_held_before_they_are_parsed() -> None:
    def full(num_bytes: int) -> None:
        assert num_bytes >= 70_000 * 72
        raise MemoryError

    with pytest.raises(MemoryError):
        parse_infer_request(b"[" + b"1," * 70_000, None, PayloadLimits(), full)
