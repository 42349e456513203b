"""All ways to ask `POST /predict`, before a real model in one process."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.responses import Classified, ModelInfo, predictions
from tests.support import image_files
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import CLASS_NAMES, write_classifier
from tests.support.payload_requests import text_of
from tests.support.prediction_server import running

PHOTOS = [image_files.png(image_files.picture(seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    path = write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx")
    return http_app(LocalBackend(path, max_images=4))


@pytest.fixture
def ask(app: FastAPI) -> Callable[..., httpx.Response]:
    return lambda query="", **options: request(app, "POST", f"/predict{query}", **options)


@pytest.fixture
def expected(ask: Callable[..., httpx.Response]) -> list[Any]:
    """Each photo's answer when it is alone."""
    answers = [ask(content=photo).json() for photo in PHOTOS]
    assert len({answer["probability"] for answer in answers}) == 3
    return answers


ONE = {
    "a file": {"files": {"image": ("a.png", PHOTOS[0], "image/png")}},
    "a file of any name": {"files": {"upload": ("a.png", PHOTOS[0])}},
    "base64": {"json": {"image": text_of(PHOTOS[0])}},
    "a data URL": {"json": {"image": f"data:image/png;base64,{text_of(PHOTOS[0])}"}},
}
MANY = {
    "files": {"files": [("image", ("a.png", photo)) for photo in PHOTOS]},
    "base64": {"json": {"images": [text_of(photo) for photo in PHOTOS]}},
}


@pytest.mark.parametrize("options", ONE.values(), ids=ONE)
def test_one_image_is_answered_as_a_raw_body_is(
    ask: Callable[..., httpx.Response], expected: list[Any], options: dict[str, Any]
) -> None:
    assert ask(**options).json() == expected[0]


@pytest.mark.parametrize("options", MANY.values(), ids=MANY)
def test_many_images_are_answered_in_their_order(
    ask: Callable[..., httpx.Response], expected: list[Any], options: dict[str, Any]
) -> None:
    assert ask(**options).json() == expected


def test_a_list_of_one_is_answered_by_a_list(
    ask: Callable[..., httpx.Response], expected: list[Any]
) -> None:
    assert ask(json={"images": [text_of(PHOTOS[0])]}).json() == expected[:1]
    assert ask(files={"images": ("a.png", PHOTOS[0])}).json() == expected[:1]


BAD = {
    "text": (image_files.text(), 400),
    "a truncated image": (image_files.truncated_jpeg(), 400),
    "too many pixels": (image_files.png_claiming(50_000, 50_000), 413),
    "PSD": (image_files.psd(), 415),
}


@pytest.mark.parametrize(("encoded", "status"), BAD.values(), ids=BAD)
def test_a_bad_image_refuses_the_list_and_is_named(
    ask: Callable[..., httpx.Response], encoded: bytes, status: int
) -> None:
    response = ask(json={"images": [text_of(PHOTOS[0]), text_of(encoded), text_of(b"bad")]})

    assert response.status_code == response.json()["status"] == status
    assert response.json()["detail"].startswith("images[1]: ")


def test_too_many_images_are_refused(ask: Callable[..., httpx.Response]) -> None:
    response = ask(json={"images": [text_of(PHOTOS[0])] * 5})

    assert response.status_code == 413
    assert response.json()["detail"] == "images must hold at most 4 images; got 5"


def test_urls_are_fetched_only_where_hosts_are_allowed(
    ask: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    body = {"url": "http://127.0.0.1/face.jpg"}

    refused = ask(json=body)
    allowing = http_app(
        LocalBackend(write_classifier(tmp_path / "m.onnx"), allowed_hosts=("localhost",))
    )
    not_allowed = request(allowing, "POST", "/predict", json=body)
    not_public = request(allowing, "POST", "/predict", json={"url": "http://localhost/face.jpg"})

    assert refused.status_code == not_allowed.status_code == not_public.status_code == 422
    assert "images are not fetched from URLs here" in refused.json()["detail"]
    assert "must name an allowed host" in not_allowed.json()["detail"]
    assert "public addresses only" in not_public.json()["detail"]


def test_top_k_orders_and_limits_the_classes(
    ask: Callable[..., httpx.Response], expected: list[Any]
) -> None:
    probabilities = expected[0]["probabilities"]
    ordered = sorted(probabilities, key=probabilities.get, reverse=True)

    one, two = (ask(f"?top_k={k}", content=PHOTOS[0]).json() for k in (1, 2))

    assert one == expected[0] | {"probabilities": {ordered[0]: probabilities[ordered[0]]}}
    assert list(two["probabilities"]) == ordered


def test_below_the_threshold_the_label_is_uncertain(
    ask: Callable[..., httpx.Response], expected: list[Any]
) -> None:
    sure = ask(f"?threshold={expected[0]['probability']}", content=PHOTOS[0])
    unsure = ask("?threshold=1", content=PHOTOS[0])

    assert sure.json() == expected[0]
    assert unsure.json() == expected[0] | {"label": "uncertain"}


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("top_k=0", "top_k must be greater than or equal to 1; got '0'"),
        ("top_k=3", "top_k must be 1 to 2; got 3"),
        ("top_k=x", "top_k must be a valid integer, unable to parse string as an integer; got 'x'"),
        ("threshold=1.5", "threshold must be less than or equal to 1; got '1.5'"),
        ("threshold=nan", "threshold must be a finite number; got 'nan'"),
    ],
)
def test_a_wrong_parameter_says_what_is_allowed(
    ask: Callable[..., httpx.Response], query: str, detail: str
) -> None:
    response = ask(f"?{query}", content=PHOTOS[0])

    assert response.status_code == 422
    assert response.json()["detail"] == detail


def test_a_client_that_stalls_is_told_and_let_go(tmp_path: Path) -> None:
    times = {"request_timeout_s": 0.2, "decode_timeout_s": 0.1, "max_decode_s": 0.1}
    backend = LocalBackend(write_classifier(tmp_path / "m.onnx"), **times)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"

    with running(http_app(backend)) as url:
        port = httpx.URL(url).port or 80
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head + bytes(10))
            received = b"".join(iter(lambda: connection.recv(4096), b""))

    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.2 s" in received


def test_equal_probabilities_keep_the_order_of_the_model() -> None:
    model = ModelInfo(name="m", version="1")
    rows = np.full((1, 3), 1 / 3, np.float32)

    (prediction,) = predictions(Classified(model, ("b", "a", "c"), rows), top_k=2)

    assert prediction.label == "b"
    assert list(prediction.probabilities) == ["b", "a"]


def test_the_classes_of_the_model_are_told(expected: list[Any]) -> None:
    assert tuple(expected[0]["probabilities"]) == CLASS_NAMES
    assert expected[0]["model"] == {"name": "tiny", "version": None}
