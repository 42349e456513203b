"""A model file, and the HTTP app before it that asks for tokens."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import TOKENS_VARIABLE
from tests.support.guarded_app import FIRST, SECOND
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "tiny.onnx")


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, f"phone-app:{FIRST}, {SECOND}")


@pytest.fixture
def guarded(model_path: Path, tokens: None) -> FastAPI:
    return http_app(LocalBackend(model_path))
