"""The file of a version, as the actor that reads the registry finds it."""

import threading
from pathlib import Path
from typing import NoReturn

import pytest

from mask_ray import tracking
from mask_ray.config import MaskRayError
from mask_ray.files import sha256_of
from mask_ray.serving.versions import model_files
from mask_ray.serving.versions.model_files import ModelFile, find_in_registry
from mask_ray.tracking import ModelNotFoundError, ResolvedModel


def test_a_file_is_here_while_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    found = ModelFile(path, sha256_of(path))
    assert found.is_here()
    path.write_bytes(b"two")
    assert not found.is_here()
    path.unlink()
    assert not found.is_here()


def test_a_version_is_found_with_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    asked = []

    def resolve(uri: str, *, prefer_kept: bool) -> ResolvedModel:
        asked.append((uri, prefer_kept))
        return ResolvedModel(path, "name", "3")

    monkeypatch.setattr(tracking, "resolve_model", resolve)
    found = find_in_registry("models:/name/3", prefer_kept=True)
    assert found == ModelFile(path, sha256_of(path))
    assert asked == [("models:/name/3", True)]


def test_a_server_that_takes_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(tracking, "resolve_model", lambda *_, **__: goes_on.wait())
    monkeypatch.setattr(model_files, "RESOLVE_TIMEOUT_S", 0.05)
    try:
        with pytest.raises(MaskRayError, match="finding models:/name/3 took over"):
            find_in_registry("models:/name/3", prefer_kept=False)
    finally:
        goes_on.set()


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFoundError("no model"),
        OSError("the disk is gone"),
        TimeoutError("the read timed out"),
    ],
)
def test_whatever_fails_is_an_error_that_is_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(tracking, "resolve_model", fail)
    with pytest.raises(MaskRayError, match=str(error)):
        find_in_registry("models:/name/3", prefer_kept=False)
