"""What the pipeline makes of a service's answers, and of sources that change. No Ray."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mask_ray.config import ImageLimits, MaskRayError
from mask_ray.data.sources import fingerprint
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from mask_ray.pipeline import live_service
from mask_ray.pipeline.live_service import LabelledImage, ServiceError
from mask_ray.processes import free_port
from tests.support import image_files
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier
from tests.support.prediction_server import (
    PREDICTION,
    PredictionServer,
    prediction,
    prediction_server,
    running,
)

READY = {"status": "ready", "model": {"name": "mask-detector", "version": "3"}, "refused": []}
MODEL = ("mask-detector", "3")


class HealthServer:
    """Answers /healthz and HEAD / with the given answers in turn; the last one repeats."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[tuple[int, Any]] = [(200, READY)]
        self.etag = "one"

    def healthz(self, request: Request) -> Response:
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return JSONResponse(body, status)

    def archive(self, request: Request) -> Response:
        return Response(headers={"ETag": self.etag})


@pytest.fixture
def server() -> Iterator[HealthServer]:
    told = HealthServer()
    routes = [Route("/healthz", told.healthz), Route("/photos.zip", told.archive)]
    with running(Starlette(routes=routes)) as told.url:
        yield told


def test_the_version_that_answers_is_waited_for(server: HealthServer) -> None:
    before = READY | {"model": {"name": "mask-detector", "version": "2"}}
    server.answers = [(503, {}), (200, before), (200, READY)]
    live_service.await_version(server.url, *MODEL, timeout_s=30)
    assert server.answers == [(200, READY)]
    assert live_service.serves(server.url, *MODEL)
    assert not live_service.serves(server.url, "mask-detector", "4")


@pytest.mark.parametrize(
    ("status", "body", "version", "message"),
    [
        (200, READY, "4", "still answers with version 3 after 0.1 s, not 4: it follows"),
        (200, READY | {"model": {"name": "cats", "version": "3"}}, "3", "serves cats, not mask-"),
        (
            200,
            READY | {"refused": [{"alias": "champion", "version": "4", "reason": "it is NaN"}]},
            "4",
            "refuses version 4: it is NaN",
        ),
        (503, {}, "3", "nothing is ready to answer"),
        (200, ["hello"], "3", "something else answers at"),
        (500, {}, "3", "something else answers at"),
    ],
)
def test_why_a_version_does_not_answer_is_told(
    server: HealthServer, status: int, body: Any, version: str, message: str
) -> None:
    server.answers = [(status, body)]
    with pytest.raises(ServiceError, match=message):
        live_service.await_version(server.url, "mask-detector", version, timeout_s=0.1)


def test_where_nothing_listens_there_is_no_service(server: HealthServer) -> None:
    assert live_service.health(f"http://127.0.0.1:{free_port()}") is None
    server.answers = [(404, {})]
    assert live_service.health(server.url) is None


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(write_classifier(tmp_path / "model.onnx"))


@pytest.fixture
def asked() -> Iterator[PredictionServer]:
    with prediction_server() as stub:
        yield stub


IMAGE = LabelledImage("a.png", image_files.png(image_files.picture(seed=1)), CLASS_NAMES[0])


def own_answer(predictor: Predictor, **changes: Any) -> dict[str, Any]:
    pixels = decode_resized(IMAGE.encoded, IMAGE_SIZE, ImageLimits())
    (row,) = predictor.predict(np.stack([pixels])).tolist()
    named = dict(zip(CLASS_NAMES, row, strict=True))
    label = max(named, key=lambda name: named[name])
    answer = {"label": label, "probability": named[label], "probabilities": named}
    return PREDICTION | answer | changes


def test_answers_that_are_the_file_s_own_are_counted(
    asked: PredictionServer, predictor: Predictor
) -> None:
    answer = own_answer(predictor)
    asked.default = lambda: prediction(**answer)
    told = live_service.check_answers(asked.url, MODEL, [IMAGE, IMAGE], predictor, ImageLimits())
    correct = 2 * (answer["label"] == IMAGE.class_name)
    assert told == {"num_images": 2, "num_correct": correct, "largest_difference": 0.0}


def test_answers_of_another_version_or_model_file_are_refused(
    asked: PredictionServer, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_service, "_SWITCHED_WITHIN_S", 1)
    asked.default = lambda: prediction(**own_answer(predictor))
    with pytest.raises(
        ServiceError, match=r"answers a.png with version 3 of mask-detector, not with"
    ):
        live_service.check_answers(
            asked.url, ("mask-detector", "4"), [IMAGE], predictor, ImageLimits()
        )

    own = own_answer(predictor)
    other = next(name for name in CLASS_NAMES if name != own["label"])
    flipped = {own["label"]: 0.1, other: 0.9}
    asked.default = lambda: prediction(label=other, probability=0.9, probabilities=flipped)
    with pytest.raises(ServiceError, match=f"answers {other} for a.png, its own model file"):
        live_service.check_answers(asked.url, MODEL, [IMAGE], predictor, ImageLimits())


def test_a_folder_is_another_when_a_file_in_it_is(tmp_path: Path) -> None:
    photo = tmp_path / "a" / "1.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"1")
    seen = [fingerprint.of_source(str(tmp_path))]
    assert fingerprint.of_source(str(tmp_path)) == seen[0]

    photo.rename(tmp_path / "a" / "2.jpg")
    seen.append(fingerprint.of_source(str(tmp_path)))
    (tmp_path / "b").mkdir()
    seen.append(fingerprint.of_source(str(tmp_path)))
    os.utime(tmp_path / "a" / "2.jpg", ns=(0, 0))
    seen.append(fingerprint.of_source(str(tmp_path)))
    seen.append(fingerprint.of_source(str(tmp_path / "a" / "2.jpg")))
    assert len(set(seen)) == len(seen)


def test_a_url_is_another_when_its_server_says_so(server: HealthServer) -> None:
    url = f"{server.url}/photos.zip"
    before = fingerprint.of_source(url)
    assert fingerprint.of_source(url) == before
    server.etag = "two"
    assert fingerprint.of_source(url) != before
    with pytest.raises(MaskRayError, match="is not reached"):
        fingerprint.of_source(f"http://127.0.0.1:{free_port()}/photos.zip")


def test_the_address_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("http_options: {host: 0.0.0.0, port: 9000}")
    assert live_service.address(file) == "http://127.0.0.1:9000"
    with pytest.raises(ServiceError, match="serve_config must be a file such as"):
        live_service.address(tmp_path / "nothing.yaml")
