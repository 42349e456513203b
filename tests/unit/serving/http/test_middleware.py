"""What every answer has, and what none gives away."""

from pathlib import Path

from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from tests.support.guarded_app import FIRST, paths_of, predict
from tests.support.local_backend import LocalBackend, request


def test_no_answer_gives_the_server_away(guarded: FastAPI) -> None:
    asked = [*paths_of(guarded), ("GET", "/nothing"), ("DELETE", "/predict"), ("POST", "/v2")]

    for method, path in asked:
        response = request(guarded, method, path, headers={"authorization": f"Bearer {FIRST}"})
        assert response.headers["x-content-type-options"] == "nosniff", path
        assert not {"server", "x-powered-by"} & set(response.headers)
        if response.status_code >= 400:
            for leak in ("Traceback", ".py", "/work", "starlette", "fastapi", " object at 0x"):
                assert leak not in response.text


def test_unforeseen_errors_have_the_header_too(model_path: Path) -> None:
    backend = LocalBackend(model_path)
    backend.predictor = None  # type: ignore[assignment]

    response = predict(http_app(backend))

    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
