"""Requests that nobody would send: no 500, no hang, every error in its own form."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask_ray.serving.http.app import http_app
from tests.support import image_files
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier

# Ten times what the largest request takes on a slow machine.
LONGEST_ANSWER_S = 50
STATUSES = {200, 400, 404, 405, 413, 415, 422}

Ask = Callable[..., httpx.Response]


def fuzz(num_requests: int) -> settings:
    return settings(
        max_examples=num_requests,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def app(folder: Path) -> FastAPI:
    """A service with tight limits."""
    path = write_classifier(folder / "tiny.onnx")
    limits = {"max_image_bytes": 30_000, "max_total_bytes": 60_000, "max_image_pixels": 100_000}
    return http_app(LocalBackend(path, max_images=4, allowed_hosts=("nowhere.invalid",), **limits))


@contextmanager
def asking(app: FastAPI) -> Iterator[Ask]:
    """Send one request, and check what is true of all answers."""
    statuses: Counter[int] = Counter()
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://localhost",
        )

        async def send(method: str, url: str, **options: Any) -> httpx.Response:
            async with asyncio.timeout(LONGEST_ANSWER_S):
                return await client.request(method, url, **options)

        def ask(method: str, url: str, **options: Any) -> httpx.Response:
            response = runner.run(send(method, url, **options))
            check(response)
            statuses[response.status_code] += 1
            return response

        yield ask
        runner.run(client.aclose())
    print(f"\n{statuses.total()} requests: {dict(sorted(statuses.items()))}")


def check(response: httpx.Response) -> None:
    assert response.status_code in STATUSES, response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    if response.status_code == 200:
        return
    body = response.json()
    if "v2" in response.request.url.path.split("/"):
        assert set(body) == {"error"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == response.status_code
    for leak in ("Traceback", 'File "', "/site-packages/", " object at 0x"):
        assert leak not in response.text
    assert len(response.text) < 2_000, "an error repeats little of a request"


PICTURES = [
    image_files.jpeg(),
    image_files.png(),
    image_files.webp(),
    image_files.gif(),
    image_files.bmp(),
    image_files.gray16_png(),
    image_files.palette_png_with_transparency(),
    image_files.exif_rotated_jpeg(),
    image_files.one_pixel(),
]


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A picture, whole or with some of its bytes changed, left out or put in."""
    encoded = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 4]))):
        at = draw(st.integers(0, len(encoded)))
        length = draw(st.sampled_from([0, 1, 2, 4, 64, 100_000]))
        encoded[at : at + length] = draw(st.binary(max_size=8))
    return bytes(encoded)


TEXT = st.text(max_size=20)
BASE64 = st.one_of(
    images().map(lambda encoded: base64.b64encode(encoded).decode()),
    TEXT,
    TEXT.map(lambda text: f"data:image/png;base64,{text}"),
    st.sampled_from(["data:", "data:;base64,", "====", "A" * 50_000]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | BASE64,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({"image": BASE64}),
    st.fixed_dictionaries({"images": st.lists(BASE64, max_size=6)}),
    st.fixed_dictionaries({"url": TEXT | st.sampled_from(["http://nowhere.invalid/", "http://["])}),
    st.fixed_dictionaries({}, optional={"image": JSON, "images": JSON, "url": JSON, "x": JSON}),
    JSON,
)
CONTENT_TYPES = st.sampled_from(
    [
        "",
        "image/jpeg",
        "IMAGE/PNG; q=1",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json",
        "application/json; charset=utf-16",
        "multipart/form-data",
        "multipart/form-data; boundary=b",
        'multipart/form-data; boundary=""',
        "text/plain",
    ]
) | st.binary(max_size=30).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
QUERIES = st.dictionaries(
    st.sampled_from(["top_k", "threshold", "x"]),
    st.one_of(
        st.integers(-2, 4).map(str),
        st.floats().map(str),
        st.sampled_from(["1", "0.5", "9" * 5_000, "\N{ARABIC-INDIC DIGIT ONE}"]),
        TEXT,
    ),
)


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A form with the boundary `b`, right or nearly so."""
    body = bytearray()
    for _ in range(draw(st.integers(0, 6))):
        name = draw(st.sampled_from([b'name="image"', b'name="images"', b"name", b""]))
        file = draw(st.sampled_from([b'; filename="a.jpg"', b"; filename=", b""]))
        body += b"--b\r\nContent-Disposition: form-data; " + name + file + b"\r\n\r\n"
        body += draw(images() | st.binary(max_size=40)) + b"\r\n"
    body += draw(st.sampled_from([b"--b--\r\n", b"--b--", b"--b", b""]))
    if body and draw(st.booleans()):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


JSON_BODIES = DOCUMENTS.map(lambda document: json.dumps(document).encode())
BODIES = st.one_of(images(), JSON_BODIES, forms(), st.binary(max_size=200))
REQUESTS = st.one_of(
    st.tuples(st.just("application/json"), JSON_BODIES),
    st.tuples(st.just("multipart/form-data; boundary=b"), forms()),
    st.tuples(st.just("image/jpeg"), images()),
    st.tuples(CONTENT_TYPES, BODIES),
)


def send_bodies(ask: Ask, number: int) -> None:
    """Bodies of any kind, and query parameters, to /predict."""

    @fuzz(number)
    @given(request=REQUESTS, query=st.just({}) | QUERIES)
    def send(request: tuple[str | bytes, bytes], query: dict[str, str]) -> None:
        content_type, body = request
        ask("POST", "/predict", content=body, headers={"content-type": content_type}, params=query)

    send()


SIZES = st.integers(-1, 5) | st.sampled_from([2**31, 2**63, 10**30])
TENSORS = st.fixed_dictionaries(
    {
        "name": st.just("image") | TEXT,
        "datatype": st.sampled_from(["BYTES", "UINT8"]) | TEXT,
        "shape": st.lists(SIZES, max_size=5) | st.sampled_from([[1], [2], [1, 2, 2, 3]]),
    },
    optional={
        "data": st.lists(BASE64 | st.integers(-1, 256) | JSON, max_size=12)
        | st.just([255] * 12)
        | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), SIZES | JSON
        ),
    },
)
OUTPUTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["probabilities", "label", "x"])},
    optional={"parameters": st.dictionaries(st.sampled_from(["binary_data", "x"]), JSON)},
)
SOUND_TENSORS = st.one_of(
    st.just({"datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [255] * 12}),
    st.lists(images(), min_size=1, max_size=4).map(
        lambda encoded: {
            "datatype": "BYTES",
            "shape": [len(encoded)],
            "data": [base64.b64encode(image).decode() for image in encoded],
        }
    ),
).map(lambda tensor: {"name": "image"} | tensor)
SOUND_INFERENCES = st.fixed_dictionaries(
    {"inputs": st.tuples(SOUND_TENSORS)}, optional={"id": TEXT, "outputs": st.lists(OUTPUTS)}
)
INFERENCES = SOUND_INFERENCES | (
    st.fixed_dictionaries(
        {"inputs": st.lists(TENSORS, max_size=2)},
        optional={"id": JSON, "outputs": st.lists(OUTPUTS, max_size=3), "parameters": JSON},
    )
    | JSON
)


def send_inferences(ask: Ask, number: int) -> None:
    """Documents of the Open Inference Protocol, with binary data or without."""

    @fuzz(number)
    @given(document=INFERENCES, tail=st.binary(max_size=40) | images(), length=st.none() | SIZES)
    def send(document: Any, tail: bytes, length: int | None) -> None:
        body = json.dumps(document).encode()
        headers = {}
        if length is not None:
            headers["inference-header-content-length"] = str(len(body) if length == 1 else length)
            body += tail
        ask("POST", "/v2/models/tiny/infer", content=body, headers=headers)

    send()


def as_httpx_takes_it(part: tuple[Any, ...]) -> tuple[Any, ...]:
    """A part of a form whose content is not a number, which only requests would write as text."""
    name, content, *rest = part
    return name, content if isinstance(content, str | bytes) else str(content), *rest


def send_from_schema(ask: Ask, app: FastAPI, number: int) -> None:
    """What schemathesis makes of the OpenAPI file."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    cases = st.one_of([operation.as_strategy() for operation in operations])

    @fuzz(number)
    @given(case=cases)
    def answered(case: Any) -> None:
        sent = case.as_transport_kwargs()
        if files := sent.get("files"):
            sent["files"] = [(name, as_httpx_takes_it(part)) for name, part in files]
        ask(sent.pop("method"), sent.pop("url"), **sent)

    answered()
