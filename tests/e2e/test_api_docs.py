"""The page at /docs in Chromium."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from tests.support.browser_page import chromium
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier
from tests.support.polling import wait_until
from tests.support.prediction_server import running


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return http_app(LocalBackend(write_classifier(tmp_path / "tiny.onnx")))


def test_it_shows_the_api_and_a_button_for_the_token(app: FastAPI) -> None:
    with running(app) as url, chromium() as page:
        page.driver.get(f"{url}/docs")
        operations = wait_until(lambda: page.driver.find_elements("css selector", ".opblock"))
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
