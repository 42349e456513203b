"""Which pages of other origins may ask."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mask_ray.config import ServeSettings
from mask_ray.serving.http.app import http_app
from tests.support.guarded_app import FIRST, predict
from tests.support.local_backend import LocalBackend, request

PREFLIGHT = {"origin": "https://app.example.org", "access-control-request-method": "POST"}


def test_other_origins_are_not_allowed_by_default(model_path: Path) -> None:
    app = http_app(LocalBackend(model_path))

    answers = [
        predict(app, origin="https://app.example.org"),
        request(app, "OPTIONS", "/predict", headers=PREFLIGHT),
    ]

    for response in answers:
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_origins_that_are_configured_are_allowed(model_path: Path, tokens: None) -> None:
    app = http_app(LocalBackend(model_path, cors_origins=["https://app.example.org"]))

    preflight = request(
        app,
        "OPTIONS",
        "/predict",
        headers=PREFLIGHT | {"access-control-request-headers": "authorization,content-type"},
    )
    refused = request(
        app, "OPTIONS", "/predict", headers=PREFLIGHT | {"origin": "https://evil.example"}
    )
    answered = predict(app, f"Bearer {FIRST}", origin="https://app.example.org")

    assert preflight.status_code == answered.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.org"
    assert answered.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "Retry-After" in answered.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "null", ""])
def test_an_origin_of_another_form_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="must be origins such as"):
        ServeSettings(cors_origins=[origin])
