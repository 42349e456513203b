"""A few of the requests of tests/faults/test_fuzz.py."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from tests.support import request_fuzzing
from tests.support.request_fuzzing import Ask, asking

NUM_REQUESTS = 50


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return request_fuzzing.app(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ask(app: FastAPI) -> Iterator[Ask]:
    """Send one request, and check what is true of all answers."""
    with asking(app) as ask:
        yield ask


def test_any_body_is_answered(ask: Ask) -> None:
    request_fuzzing.send_bodies(ask, NUM_REQUESTS)


def test_any_inference_is_answered(ask: Ask) -> None:
    request_fuzzing.send_inferences(ask, NUM_REQUESTS)


def test_requests_made_from_the_openapi_file_are_answered(ask: Ask, app: FastAPI) -> None:
    request_fuzzing.send_from_schema(ask, app, NUM_REQUESTS)
