"""The HTTP face alone, before a classifier made by hand. No Ray here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.responses import PlainTextResponse

from mask_ray.config import ServeSettings
from mask_ray.images.decode import RGBArray
from mask_ray.images.decoders import DecodersError
from mask_ray.images.errors import (
    DecodingStoppedError,
    ImageError,
    ImageFormatError,
    ImageTooCostlyError,
    ImageTooLargeError,
)
from mask_ray.serving.deployment import ApplicationError, build_app
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.backend import Health
from mask_ray.serving.http.middleware import ANSWER_HEADERS, ProblemsForServeErrors
from mask_ray.serving.http.responses import Classified, ModelInfo
from mask_ray.serving.memory import MemoryBudget, NeverFitsError, OverBudgetError
from mask_ray.serving.observability.exchanges import Exchange
from tests.support.local_backend import request

PROBABILITIES = {"with_mask": 0.25, "without_mask": 0.75}
MODEL = {"name": "stub", "version": "3"}


IMPATIENT = {"request_timeout_s": 0.01, "decode_timeout_s": 0.005, "max_decode_s": 0.005}


class StubClassifier:
    def __init__(self, outcome: Any = None, **settings: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.model = ModelInfo(name="stub", version="3")
        self.is_ready = True
        self.memory = MemoryBudget(self.settings.request_memory_bytes)
        self.health = Health(model=self.model)
        self.class_names = tuple(PROBABILITIES)
        self.received: list[bytes | RGBArray] = []
        self.outcome = outcome

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        self.received += images
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            await self.outcome()
        rows = [list(PROBABILITIES.values())] * len(images)
        return Classified(self.model, self.class_names, np.array(rows, np.float32))

    async def in_thread(self, function: Any, *args: Any) -> Any:
        return function(*args)


async def never() -> None:
    await asyncio.Event().wait()


def predict(classifier: StubClassifier, **options: Any) -> httpx.Response:
    return request(http_app(classifier), "POST", "/predict", **options)


def assert_problem(response: httpx.Response, status: int, detail: str) -> None:
    problem = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert detail in problem["detail"]
    for name, value in ANSWER_HEADERS.items():
        assert response.headers[name] == value


def test_answers_with_the_likeliest_class_and_the_model() -> None:
    assert predict(StubClassifier(), content=b"image").json() == {
        "label": "without_mask",
        "probability": 0.75,
        "probabilities": PROBABILITIES,
        "model": MODEL,
    }


@pytest.mark.parametrize(
    "content_type", [None, "image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream"]
)
def test_takes_an_image_as_the_body(content_type: str | None) -> None:
    classifier = StubClassifier()
    headers = {"content-type": content_type} if content_type else {}

    response = predict(classifier, content=b"image", headers=headers)

    assert response.status_code == 200
    assert classifier.received == [b"image"]


@pytest.mark.parametrize("content_type", ["application/xml", "text/plain", "multipart/mixed", "x"])
def test_refuses_other_content_types(content_type: str) -> None:
    classifier = StubClassifier()

    response = predict(classifier, content=b"image", headers={"content-type": content_type})

    assert_problem(response, 415, f"got {content_type!r}")
    assert classifier.received == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError, 400),
        (ImageTooLargeError, 413),
        (ImageTooCostlyError, 413),
        (ImageFormatError, 415),
        (DecodingStoppedError, 422),
        (NeverFitsError, 413),
    ],
)
def test_an_image_that_cannot_be_decoded_is_a_problem(error: type[Exception], status: int) -> None:
    assert_problem(predict(StubClassifier(error("why")), content=b"image"), status, "why")


def test_a_replica_without_room_says_when_to_come_back() -> None:
    response = predict(StubClassifier(OverBudgetError("it is full")), content=b"image")

    assert_problem(response, 429, "The replica is busy: it is full.")
    assert response.headers["retry-after"] == "1"


def test_a_replica_that_cannot_decode_says_when_to_come_back() -> None:
    response = predict(StubClassifier(DecodersError("fork failed")), content=b"image")

    assert_problem(response, 503, "The replica cannot decode images now.")
    assert response.headers["retry-after"] == "1"


def test_bodies_share_one_budget_which_they_give_back() -> None:
    limits = {"max_image_bytes": 800_000, "max_total_bytes": 800_000, "max_images": 1}
    classifier = StubClassifier(max_decode_bytes=2**20, request_memory_bytes=8 * 2**20, **limits)
    body = b"1" * 400_000

    with classifier.memory.holding(5 * 2**20):
        assert_problem(predict(classifier, content=body), 429, "memory for requests is full")
    assert predict(classifier, content=body).status_code == 200
    assert predict(classifier, content=2 * body).status_code == 200
    assert classifier.memory.held_bytes == 0
    classifier.memory = MemoryBudget(2 * 2**20)
    assert_problem(predict(classifier, content=body), 413, "bytes of memory; at most 1572864")
    assert classifier.memory.held_bytes == 0


def test_the_byte_limit_is_inclusive() -> None:
    classifier = StubClassifier(max_image_bytes=5)

    assert predict(classifier, content=b"12345").status_code == 200
    assert_problem(predict(classifier, content=b"123456"), 413, "over 5 bytes")


def test_a_body_declared_too_long_is_not_read() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    response = predict(
        StubClassifier(max_image_bytes=5), content=unread(), headers={"content-length": "6"}
    )

    assert_problem(response, 413, "over 5 bytes")


def test_a_body_of_unknown_length_is_read_only_up_to_the_limit() -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b"123"

    response = predict(StubClassifier(max_image_bytes=5), content=endless())

    assert_problem(response, 413, "over 5 bytes")
    assert num_read == 2


def test_a_body_that_does_not_arrive_is_a_problem() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"1"
        await never()

    response = predict(StubClassifier(**IMPATIENT), content=stuck())

    assert_problem(response, 408, "did not arrive within 0.01 s")


def test_a_late_answer_is_a_problem() -> None:
    response = predict(StubClassifier(never, **IMPATIENT), content=b"image")

    assert_problem(response, 504, "no answer within 0.01 s")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("GET", "/healthz"), ("GET", "/readyz")]
)
def test_says_when_it_is_not_ready(method: str, path: str) -> None:
    classifier = StubClassifier()
    classifier.is_ready = False

    response = request(http_app(classifier), method, path)

    assert_problem(response, 503, "not ready")
    assert response.headers["retry-after"] == "1"


def test_an_unforeseen_error_gives_nothing_away() -> None:
    response = predict(StubClassifier(RuntimeError("/secret/path")), content=b"image")

    assert_problem(response, 500, "failed")
    assert "secret" not in response.text
    assert "Traceback" not in response.text


def test_paths_and_methods_that_do_not_exist_are_problems() -> None:
    app = http_app(StubClassifier())

    assert_problem(request(app, "GET", "/nothing"), 404, "Not Found")
    not_allowed = request(app, "GET", "/predict")
    assert_problem(not_allowed, 405, "Method Not Allowed")
    assert not_allowed.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/livez", "/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/models/stub"],
)
def test_head_is_answered_as_get_without_the_body(path: str) -> None:
    exchanges: list[Exchange] = []
    app = http_app(StubClassifier(), exchanges.append)

    head, get = request(app, "HEAD", path), request(app, "GET", path)

    assert (head.status_code, head.content) == (200, b"")
    different = ("x-request-id",)
    assert {k: v for k, v in head.headers.items() if k not in different} == {
        k: v for k, v in get.headers.items() if k not in different
    }
    assert [(each.method, each.bytes_out > 0) for each in exchanges] == [
        ("HEAD", False),
        ("GET", True),
    ]
    assert exchanges[0].endpoint == exchanges[1].endpoint


def test_head_says_that_it_is_not_ready() -> None:
    classifier = StubClassifier()
    classifier.is_ready = False

    for path in ("/healthz", "/readyz", "/v2/health/ready"):
        response = request(http_app(classifier), "HEAD", path)
        assert (response.status_code, response.content) == (503, b"")


def test_other_methods_are_told_which_there_are() -> None:
    app = http_app(StubClassifier())

    assert request(app, "POST", "/livez").headers["allow"] == "GET, HEAD"
    head = request(app, "HEAD", "/predict")
    assert (head.status_code, head.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("POST", "/predict?topk=1", "must be top_k or threshold; got 'topk'"),
        ("POST", "/predict?top_k=1&debug", "got 'debug'"),
        ("POST", "/predict?Top_K=1", "got 'Top_K'"),
        ("POST", "/predict?top_k=1&top_k=2", "top_k must be given once; got 2 of it"),
        ("POST", "/predict?" + "&".join(f"{n}=1" for n in range(99)), "and 94 more"),
        ("POST", "/v2/models/stub/infer?top_k=1", "this path has no query parameters; got 'top_k'"),
        ("GET", "/v2/models/stub?version=3", "got 'version'"),
    ],
)
def test_unknown_query_parameters_are_refused(method: str, path: str, detail: str) -> None:
    classifier = StubClassifier()

    response = request(http_app(classifier), method, path, content=b"image")

    answer = response.json()
    assert response.status_code == 422
    assert detail in answer.get("detail", answer.get("error")), answer
    assert len(response.content) < 300
    assert classifier.received == []


def test_probes_and_the_page_ignore_query_parameters() -> None:
    app = http_app(StubClassifier())

    for path in ("/livez?t=1", "/healthz?t=1", "/v2/health/ready?t=1", "/?utm_source=a"):
        assert request(app, "GET", path).status_code == 200


def preflight(origin: str, headers: str) -> httpx.Response:
    app = http_app(StubClassifier(cors_origins=["https://app.example.org"]))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": headers}
    return request(app, "OPTIONS", "/predict", headers={"origin": origin} | asked)


@pytest.mark.parametrize(
    "headers", ["traceparent, x-requested-with", "authorization,content-type", "baggage"]
)
def test_pages_of_an_allowed_site_may_send_any_header(headers: str) -> None:
    response = preflight("https://app.example.org", headers)

    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == headers
    assert preflight("https://evil.example.org", headers).status_code == 400


def test_openapi_documents_the_body_and_the_errors() -> None:
    described = request(http_app(StubClassifier()), "GET", "/openapi.json").json()

    operation = described["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "binary/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    for status in ("400", "401", "408", "413", "415", "422", "429", "503", "504"):
        (schema,) = operation["responses"][status]["content"].values()
        assert set(schema["schema"]["properties"]) == {"type", "title", "status", "detail"}


def test_errors_of_serve_itself_become_problems() -> None:
    refusal = PlainTextResponse("Request dropped", 429, {"retry-after": "1", "x-request-id": "7"})

    response = request(ProblemsForServeErrors(refusal), "POST", "/predict")

    assert_problem(response, 429, "busy")
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"] == "7"


def test_what_serve_gives_up_is_too_late_and_not_the_clients_fault() -> None:
    given_up = ProblemsForServeErrors(PlainTextResponse("Request 7 timed out after 20s.", 408))

    response = request(given_up, "POST", "/predict")

    assert_problem(response, 504, "no answer in time")
    assert response.headers["retry-after"] == "1"


def test_a_replica_that_dies_with_the_request_is_a_bad_gateway() -> None:
    async def no_answer(*_: Any) -> None:
        pass

    response = request(ProblemsForServeErrors(no_answer), "POST", "/predict")

    assert_problem(response, 502, "ended before it answered")
    assert response.headers["retry-after"] == "1"


def test_other_answers_pass_unchanged() -> None:
    app = ProblemsForServeErrors(http_app(StubClassifier(ImageError("why"))))

    assert_problem(request(app, "POST", "/predict", content=b"image"), 400, "why")
    assert request(ProblemsForServeErrors(PlainTextResponse("ok")), "GET", "/").text == "ok"


def test_a_wrong_setting_is_named_in_one_line() -> None:
    with pytest.raises(ApplicationError) as caught:
        build_app({"max_batch_size": 0, "colour": "red"})

    assert "colour is not a setting" in str(caught.value)
    assert "max_batch_size must be greater than or equal to 1; got 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_model_file_is_named() -> None:
    with pytest.raises(ApplicationError, match=r"there is no file .*missing\.onnx"):
        build_app({"model_uri": "missing.onnx"})


def test_a_model_that_was_never_registered_says_how_to_make_one(store: None) -> None:
    with pytest.raises(ApplicationError, match=r"jobs\.train"):
        build_app({})
