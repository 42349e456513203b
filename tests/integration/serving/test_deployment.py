"""The application on a real Ray Serve, over real HTTP."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from mask_ray.config import ImageLimits
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from mask_ray.processes import free_port
from mask_ray.serving.deployment import build_app
from tests.support import image_files
from tests.support.browser_page import check_classifies, chromium
from tests.support.onnx_files import IMAGE_SIZE, write_classifier
from tests.support.replicas import in_replicas, replicas

TOKEN = "s3cret-of-22-characters"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
MOST_BYTES = ImageLimits().max_image_bytes
TRAINING_PACKAGES = {"tensorflow", "keras", "horovod", "mlflow"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Slow enough for images to wait for it together.
    return write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx", num_products=5)


@pytest.fixture(scope="module")
def base_url(
    ray_local: None, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Two applications: the usual one at /, and at /tight one with room for two requests, which
    asks for a token.
    """
    token_file = tmp_path_factory.mktemp("secrets") / "tokens"
    token_file.write_text(TOKEN)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    usual = {"model_uri": str(model_path), "max_replicas": 1}
    tight = {"max_batch_size": 1, "max_ongoing_requests": 1, "max_queued_requests": 1} | {
        "token_file": str(token_file)
    }
    serve.run(build_app(usual), name="usual", route_prefix="/")
    serve.run(build_app(usual | tight), name="tight", route_prefix="/tight")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, headers=WITH_TOKEN, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model_path: Path) -> Callable[[bytes], dict[str, float]]:
    """The answer without any server."""
    predictor = Predictor(model_path)

    def classify(encoded: bytes) -> dict[str, float]:
        image = decode_resized(encoded, IMAGE_SIZE, ImageLimits())
        (probabilities,) = predictor.predict(image[None])
        return dict(zip(predictor.class_names, map(float, probabilities), strict=True))

    return classify


def in_replica(function: Callable[[Any], Any], app_name: str = "usual") -> Any:
    """What a function makes of the classifier of the application's only replica."""
    (result,) = in_replicas(function, app_name)
    return result


def post_concurrently(base_url: str, bodies: list[bytes]) -> list[httpx.Response]:
    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
            return await asyncio.gather(*(client.post("/predict", content=b) for b in bodies))

    return asyncio.run(post_all())


def assert_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    for leak in ("Traceback", ".py", " object at 0x"):
        assert leak not in problem["detail"]


GOOD_IMAGES = {
    "JPEG": image_files.jpeg(),
    "PNG": image_files.png(),
    "WebP": image_files.webp(),
    "GIF": image_files.gif(),
    "BMP": image_files.bmp(),
    "animated GIF": image_files.animated_gif(),
    "CMYK JPEG": image_files.cmyk_jpeg(),
    "16-bit PNG": image_files.gray16_png(),
    "palette with transparency": image_files.palette_png_with_transparency(),
    "EXIF-rotated JPEG": image_files.exif_rotated_jpeg(),
    "one pixel": image_files.one_pixel(),
}


@pytest.mark.parametrize("encoded", GOOD_IMAGES.values(), ids=GOOD_IMAGES)
def test_answers_as_the_model_does_offline(
    client: httpx.Client, expected: Callable[[bytes], dict[str, float]], encoded: bytes
) -> None:
    answer = client.post("/predict", content=encoded).json()

    assert answer["probabilities"] == pytest.approx(expected(encoded), abs=1e-5)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["probability"] == answer["probabilities"][answer["label"]]
    assert answer["model"] == {"name": "tiny", "version": None}


def test_a_turned_photo_is_answered_as_the_upright_one(client: httpx.Client) -> None:
    answers = [
        client.post("/predict", content=encoded).json()
        for encoded in (image_files.exif_rotated_jpeg(), image_files.upright_jpeg())
    ]

    assert answers[0] == answers[1]


def test_concurrent_images_are_batched_and_each_gets_its_own_answer(
    base_url: str, expected: Callable[[bytes], dict[str, float]]
) -> None:
    bodies = [image_files.png(image_files.picture(seed=seed)) for seed in range(32)]

    def record_batches(classifier: Any) -> None:
        predictor = classifier.serving.champion.predictor
        predict = predictor.predict
        classifier.batch_sizes = []

        def recording(images: np.ndarray, **options: bool) -> np.ndarray:
            classifier.batch_sizes.append(len(images))
            return predict(images, **options)

        predictor.predict = recording

    in_replica(record_batches)
    answers = [r.json()["probabilities"] for r in post_concurrently(base_url, bodies)]
    batch_sizes = in_replica(lambda classifier: classifier.batch_sizes)

    assert len({answer["with_mask"] for answer in answers}) == 32
    for body, answer in zip(bodies, answers, strict=True):
        assert answer == pytest.approx(expected(body), abs=1e-5)
    assert len(batch_sizes) < 32
    assert max(batch_sizes) > 1


def test_many_images_of_a_request_are_batched_and_answered_in_order(
    client: httpx.Client, expected: Callable[[bytes], dict[str, float]]
) -> None:
    photos = [image_files.png(image_files.picture(seed=seed)) for seed in range(12)]

    answers = client.post("/predict", files=[("images", ("a.png", photo)) for photo in photos])

    for photo, answer in zip(photos, answers.json(), strict=True):
        assert answer["probabilities"] == pytest.approx(expected(photo), abs=1e-5)


def test_one_bad_image_of_a_list_is_named(client: httpx.Client) -> None:
    images = [image_files.png(), image_files.png(), image_files.truncated_png(), b""]

    response = client.post("/predict", files=[("images", ("a.png", image)) for image in images])

    assert_problem(response, 400)
    assert response.json()["detail"].startswith("images[2]: PNG image is truncated")


def test_a_client_of_the_inference_protocol_is_answered(
    base_url: str, expected: Callable[[bytes], dict[str, float]]
) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    photos = [image_files.png(image_files.picture(seed=seed)) for seed in range(2)]
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, np.object_))

    with triton.InferenceServerClient(base_url.removeprefix("http://")) as asking:
        assert asking.is_server_live() and asking.is_server_ready()
        rows = asking.infer("tiny", [tensor]).as_numpy("probabilities")

    for photo, row in zip(photos, rows, strict=True):
        assert list(row) == pytest.approx(list(expected(photo).values()), abs=1e-5)


def test_without_the_token_nothing_is_classified(base_url: str, client: httpx.Client) -> None:
    photo = image_files.jpeg()

    refused = client.post("/tight/predict", content=photo, headers={"Authorization": ""})

    assert_problem(refused, 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert client.post("/tight/predict", content=photo).status_code == 200
    assert httpx.get(f"{base_url}/tight/readyz").status_code == 200


def test_headers_give_nothing_away(client: httpx.Client) -> None:
    answers = [client.get(path) for path in ("/", "/readyz", "/nothing", "/openapi.json")]
    answers.append(client.post("/predict", content=b"bad"))

    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "x-powered-by" not in response.headers
        assert response.headers.get("server", "uvicorn") == "uvicorn", "no version"


def test_the_page_classifies(base_url: str, tmp_path: Path) -> None:
    photos = [tmp_path / f"face {number}.jpg" for number in range(3)]
    for seed, photo in enumerate(photos):
        photo.write_bytes(image_files.jpeg(image_files.picture(seed=seed)))

    with chromium() as page:
        check_classifies(page, f"{base_url}/", photos, {"with_mask", "without_mask"})


BAD_REQUESTS: dict[str, tuple[bytes, str, int]] = {
    "empty": (b"", "image/jpeg", 400),
    "text": (image_files.text(), "image/jpeg", 400),
    "truncated JPEG": (image_files.truncated_jpeg(), "image/jpeg", 400),
    "truncated PNG": (image_files.truncated_png(), "image/png", 400),
    "PNG of 50,000 x 50,000": (image_files.png_claiming(50_000, 50_000), "image/png", 413),
    "26 MB": (image_files.too_many_bytes(), "image/jpeg", 413),
    "PSD": (image_files.psd(), "image/vnd.adobe.photoshop", 415),
    "XML": (b"<image/>", "application/xml", 415),
    "JSON without base64": (b'{"image": "..."}', "application/json", 422),
    "JPEG called JSON": (image_files.jpeg(), "application/json", 400),
}


@pytest.mark.parametrize(
    ("body", "content_type", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS
)
def test_a_bad_request_is_a_problem_and_the_next_is_answered(
    client: httpx.Client, body: bytes, content_type: str, status: int
) -> None:
    assert_problem(
        client.post("/predict", content=body, headers={"content-type": content_type}), status
    )
    assert client.post("/predict", content=image_files.jpeg()).status_code == 200


def test_too_many_bytes_without_a_declared_length(client: httpx.Client) -> None:
    chunks = (bytes(2**16) for _ in range(MOST_BYTES // 2**16 + 1))

    assert_problem(client.post("/predict", content=chunks), 413)
    assert client.post("/predict", content=image_files.jpeg()).status_code == 200


def test_a_body_declared_too_long_is_refused_before_it_is_sent(base_url: str) -> None:
    url = httpx.URL(base_url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MOST_BYTES + 1}"
        connection.sendall(f"{head}\r\n\r\n".encode())

        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_bad_requests_harm_none_among_them(
    base_url: str, expected: Callable[[bytes], dict[str, float]]
) -> None:
    good = [image_files.png(image_files.picture(seed=seed)) for seed in range(100, 116)]
    bad = [
        image_files.text(),
        image_files.truncated_jpeg(),
        image_files.png_claiming(),
        image_files.psd(),
    ] * 4

    mixed = [body for pair in zip(good, bad, strict=True) for body in pair]
    responses = post_concurrently(base_url, mixed)

    for body, response in zip(good, responses[::2], strict=True):
        assert response.json()["probabilities"] == pytest.approx(expected(body), abs=1e-5)
    assert [response.status_code for response in responses[1::2]] == [400, 400, 413, 415] * 4


def test_overload_is_refused_with_when_to_retry(base_url: str) -> None:
    refused, answered = asyncio.run(overload(base_url))

    assert_problem(refused, 429)
    assert refused.headers["retry-after"] == "1"
    assert [response.status_code for response in answered] == [200] * len(answered)


async def overload(base_url: str) -> tuple[httpx.Response, list[httpx.Response]]:
    """Hold the only place with an upload that does not end, and knock until refused.

    Returns the refusal, and the answers to all that were not refused.
    """
    refusal_came = asyncio.Event()

    async def stuck_upload() -> AsyncIterator[bytes]:
        yield image_files.jpeg()
        await refusal_came.wait()

    async with httpx.AsyncClient(base_url=base_url, headers=WITH_TOKEN, timeout=30) as client:
        held = asyncio.create_task(client.post("/tight/predict", content=stuck_upload()))
        knocks = set()
        refused: list[httpx.Response] = []
        deadline = time.monotonic() + 90
        while not refused and time.monotonic() < deadline:
            knocks |= {
                asyncio.create_task(client.post("/tight/predict", content=image_files.jpeg()))
                for _ in range(3)
            }
            done, knocks = await asyncio.wait(
                knocks, return_when=asyncio.FIRST_COMPLETED, timeout=1
            )
            refused = [task.result() for task in done if task.result().status_code != 200]
        refusal_came.set()
        late = await asyncio.gather(held, *knocks)
    refused += [response for response in late if response.status_code != 200]
    return refused[0], [response for response in late if response.status_code != 429]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_readiness_names_the_model(client: httpx.Client, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "model": {"name": "tiny", "version": None},
        "challenger": None,
        "refused": [],
    }


def test_a_replica_whose_inference_fails_is_not_ready_until_it_works(client: httpx.Client) -> None:
    def break_inference(classifier: Any) -> None:
        def fail(images: np.ndarray, **options: bool) -> np.ndarray:
            raise RuntimeError("no inference")

        classifier.serving.champion.predictor.predict = fail

    def mend_inference(classifier: Any) -> None:
        del classifier.serving.champion.predictor.predict

    (replica,) = replicas("tight")
    in_replica(break_inference, "tight")
    with pytest.raises(RuntimeError, match="no inference"):
        ray.get(replica.check_health.remote())
    assert_problem(client.get("/tight/healthz"), 503)
    assert_problem(client.get("/tight/readyz"), 503)
    assert client.get("/tight/livez").json() == {"status": "live"}
    assert_problem(client.post("/tight/predict", content=image_files.jpeg()), 503)

    in_replica(mend_inference, "tight")
    ray.get(replica.check_health.remote())
    assert client.get("/tight/healthz").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/predict", 405)])
def test_what_does_not_exist_is_a_problem(client: httpx.Client, path: str, status: int) -> None:
    assert_problem(client.get(path), status)


def test_serves_its_own_documentation(client: httpx.Client) -> None:
    assert "swagger" in client.get("/docs").text
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_a_replica_is_free_of_training_code(client: httpx.Client) -> None:
    def packages(_: Any) -> set[str]:
        return {name.partition(".")[0] for name in sys.modules}

    client.post("/predict", content=image_files.jpeg())

    assert not TRAINING_PACKAGES & in_replica(packages)


def test_importing_the_application_imports_no_training_code() -> None:
    code = (
        "import json, sys, mask_ray.serving.deployment; "
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert not TRAINING_PACKAGES & set(json.loads(printed))
