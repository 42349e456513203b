"""The page at /docs: in Chromium, with its own policy, and nothing from elsewhere."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import write_classifier


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return http_app(LocalBackend(write_classifier(tmp_path / "tiny.onnx")))


def test_nothing_comes_from_elsewhere(app: FastAPI) -> None:
    page = request(app, "GET", "/docs")

    sources = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert sources
    for source in sources:
        assert not source.startswith(("http", "/"))
        assert request(app, "GET", f"/{source}").status_code == 200
    assert "http" not in page.text
    assert "'unsafe-eval'" not in page.headers["content-security-policy"]
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
