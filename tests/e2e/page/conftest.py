"""The page in headless Chromium, before a server that answers as the test wants it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser_page import Page, chromium
from tests.support.image_files import jpeg, picture
from tests.support.prediction_server import PredictionServer, prediction_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def server() -> Iterator[PredictionServer]:
    with prediction_server() as stub:
        yield stub


@pytest.fixture
def page(browser: Page, server: PredictionServer) -> Iterator[Page]:
    browser.open(server.url)
    yield browser
    assert browser.complaints == [], "no test may break the page's own policy, or its scripts"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"face {number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(picture(seed=number)))
    return paths
