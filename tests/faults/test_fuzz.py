"""5,000 requests that nobody would send."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from tests.support import request_fuzzing
from tests.support.request_fuzzing import Ask, asking

NUM_BODIES = 2_000
NUM_FROM_SCHEMA = 1_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return request_fuzzing.app(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ask(app: FastAPI) -> Iterator[Ask]:
    """Send one request, and check what is true of all answers."""
    with asking(app) as ask:
        yield ask


def test_any_body_is_answered(ask: Ask) -> None:
    request_fuzzing.send_bodies(ask, NUM_BODIES)


def test_any_inference_is_answered(ask: Ask) -> None:
    request_fuzzing.send_inferences(ask, NUM_BODIES)


def test_requests_made_from_the_openapi_file_are_answered(ask: Ask, app: FastAPI) -> None:
    request_fuzzing.send_from_schema(ask, app, NUM_FROM_SCHEMA)
