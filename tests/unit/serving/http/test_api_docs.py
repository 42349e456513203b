"""The page at /docs: in Chromium, with its own policy, and nothing from elsewhere."""

import re
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from tests.support.browser_page import chromium
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import write_classifier
from tests.support.prediction_server import running


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


@pytest.mark.slow
def test_it_shows_the_api_and_a_button_for_the_token(app: FastAPI) -> None:
    with running(app) as url, chromium() as page:
        page.driver.get(f"{url}/docs")
        deadline = time.monotonic() + 20
        while not (operations := page.driver.find_elements("css selector", ".opblock")):
            assert time.monotonic() < deadline
        shown = page.driver.find_element("tag name", "body").text
        logged = [
            entry["message"]
            for entry in page.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]
        documented = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert "Authorize" in shown
    assert len(operations) == sum(map(len, documented.values()))
    assert logged == []
