"""The Open Inference Protocol, asked by the client of a peer: tritonclient, over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from mask_ray.images.decode import decode, decode_resized, resize
from mask_ray.serving.http.app import http_app
from tests.support import image_files
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier
from tests.support.prediction_server import running

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")

PHOTOS = [image_files.png(image_files.picture(seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> LocalBackend:
    return LocalBackend(write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture(scope="module")
def app(backend: LocalBackend) -> FastAPI:
    return http_app(backend)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[Any]:
    with running(app) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        yield client
        client.close()


@pytest.fixture(scope="module")
def expected(backend: LocalBackend) -> np.ndarray:
    return backend.predictor.predict(
        np.stack([decode_resized(photo, IMAGE_SIZE) for photo in PHOTOS])
    )


def bytes_input(photos: list[bytes]) -> Any:
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, np.object_), binary_data=True)
    return tensor


def pixel_input(pixels: np.ndarray, binary_data: bool) -> Any:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary_data)
    return tensor


def check(result: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-5)
    labels = [
        label.decode() if isinstance(label, bytes) else label  # as binary data, and in JSON
        for label in result.as_numpy("label").ravel()
    ]
    assert labels == [CLASS_NAMES[index] for index in expected.argmax(axis=1)]
    assert result.get_response()["model_name"] == "tiny"


def test_server_and_model_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")


def test_metadata(client: Any) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("tiny")
    assert [tensor["datatype"] for tensor in metadata["inputs"]] == ["BYTES", "UINT8"]
    assert metadata["outputs"][0] == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [-1, len(CLASS_NAMES)],
    }


def test_encoded_images(client: Any, expected: np.ndarray) -> None:
    check(client.infer("tiny", [bytes_input(PHOTOS)], request_id="7"), expected)


def test_encoded_images_with_outputs_in_json(client: Any, expected: np.ndarray) -> None:
    outputs = [
        triton.InferRequestedOutput(name, binary_data=False) for name in ("probabilities", "label")
    ]
    result = client.infer("tiny", [bytes_input(PHOTOS)], outputs=outputs)

    check(result, expected)
    assert "parameters" not in result.get_output("label")


@pytest.mark.parametrize("binary_data", [True, False])
def test_pixels_of_another_size_than_the_model(
    client: Any, backend: LocalBackend, binary_data: bool
) -> None:
    pixels = np.stack([decode(photo) for photo in PHOTOS])
    assert pixels.shape[1] != IMAGE_SIZE

    result = client.infer("tiny", [pixel_input(pixels, binary_data)])

    small = np.stack([resize(image, IMAGE_SIZE) for image in pixels])
    check(result, backend.predictor.predict(small))


@pytest.mark.parametrize(
    ("name", "photos", "message"),
    [
        ("other", PHOTOS, "model must be tiny; got 'other'"),
        ("tiny", [PHOTOS[0], b"no"], r"images\[1\]: not an image"),
    ],
)
def test_the_client_understands_errors(
    client: Any, name: str, photos: list[bytes], message: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=message):
        client.infer(name, [bytes_input(photos)])


def test_the_client_can_be_compressed_no_more_than_others(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="Content-Encoding"):
        client.infer("tiny", [bytes_input(PHOTOS)], request_compression_algorithm="gzip")


def test_pixels_meet_the_filter_that_photos_meet() -> None:
    photo = image_files.png()
    np.testing.assert_array_equal(resize(decode(photo), 48), decode_resized(photo, 48))


@pytest.mark.parametrize("path", ["/v2/models/tiny/versions/3", "/v2/nothing"])
def test_errors_have_the_form_of_the_protocol(app: FastAPI, path: str) -> None:
    response = request(app, "GET", path)

    assert response.status_code == 404
    assert set(response.json()) == {"error"}
    assert response.headers["content-type"] == "application/json"


def test_readiness_is_told_by_the_status(tmp_path: Path) -> None:
    backend = LocalBackend(write_classifier(tmp_path / "tiny.onnx"))
    backend.is_ready = False
    app = http_app(backend)

    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        response = request(app, "GET", path)
        assert (response.status_code, response.json()["ready"]) == (503, False)
    assert request(app, "GET", "/v2/health/live").status_code == 200
    asked = json.dumps({"inputs": []}).encode()
    infer = request(app, "POST", "/v2/models/tiny/infer", content=asked)
    assert (infer.status_code, infer.json()) == (503, {"error": "The model is not ready."})
