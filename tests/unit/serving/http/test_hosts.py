"""Under which names the service answers, and that it sends nobody elsewhere."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from mask_ray.config import ServeSettings
from mask_ray.serving.http.app import http_app
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import write_classifier


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    names = ["masks.example.org", "*.inside.example.org", "Capital.example.org"]
    return http_app(LocalBackend(write_classifier(tmp_path / "a.onnx"), trusted_hosts=names))


def status(app: FastAPI, host: str | bytes, path: str = "/readyz") -> int:
    return request(app, "GET", path, headers={"host": host}).status_code


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST", "localhost.", "a.localhost:8000",
        "127.0.0.1", "127.0.0.1:8000", "192.168.1.7:80", "[::1]", "[::1]:8000", "[fe80::1]:1",
        "masks.example.org", "masks.example.org:443", "Masks.Example.org", "masks.example.org.",
        "a.inside.example.org", "a.b.inside.example.org", "capital.example.org",
    ],
)  # fmt: skip
def test_trusted_hosts_are_answered(app: FastAPI, host: str) -> None:
    assert status(app, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
        "inside.example.org", "evilinside.example.org", "x.masks.example.org", "::1", "127.1",
        "", ":8000", "[::1", "localhost@evil.example", "evil.example:localhost", "localhost:x",
        "2130706433", "0x7f000001",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/readyz", "/predict", "/v2", "/web/app.js", "/nothing"])
def test_other_hosts_get_nothing(app: FastAPI, host: str, path: str) -> None:
    response = request(app, "GET", path, headers={"host": host})

    assert response.status_code == 421
    assert "trusted_hosts" in response.text
    assert host not in response.text or not host
    assert response.headers["x-content-type-options"] == "nosniff"


def test_two_hosts_are_not_one(app: FastAPI) -> None:
    twice = [("host", "localhost"), ("host", "evil.example")]
    assert request(app, "GET", "/readyz", headers=twice).status_code == 421


def test_by_default_only_addresses_and_localhost_are_trusted(tmp_path: Path) -> None:
    app = http_app(LocalBackend(write_classifier(tmp_path / "a.onnx")))

    assert [status(app, h) for h in ("localhost", "10.1.2.3", "masks.example.org")] == [
        200,
        200,
        421,
    ]


def test_all_hosts_may_be_trusted(tmp_path: Path) -> None:
    app = http_app(LocalBackend(write_classifier(tmp_path / "a.onnx"), trusted_hosts=["*"]))

    assert status(app, "any.example") == 200


@pytest.mark.parametrize("name", ["", "masks.example.org:8000", "https://x.org", "10.0.0.1", "*.*"])
def test_names_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="must be names"):
        ServeSettings(trusted_hosts=[name])


@pytest.mark.parametrize("path", ["/predict/", "/docs/", "/v2/", "/healthz/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nobody_is_sent_elsewhere(app: FastAPI, method: str, path: str) -> None:
    response = request(app, method, path, headers={"host": "localhost"})

    assert response.status_code == 404
    assert "location" not in response.headers
