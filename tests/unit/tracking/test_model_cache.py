"""Models of a server are kept by version and digest, whole or not at all."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mask_ray.tracking.model_cache import ModelCache, ModelDamagedError

DIGEST = hashlib.sha256(b"onnx").hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "models", "http://mlflow")


def download(content: bytes = b"onnx") -> Callable[[Path], Path]:
    def into(folder: Path) -> Path:
        model = folder / "model"
        model.mkdir()
        (model / "model.onnx").write_bytes(content)
        (model / "MLmodel").touch()
        return model

    return into


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_kept_version_is_found_by_number_and_by_digest(cache: ModelCache) -> None:
    assert cache.find("faces", "3", None) is None
    kept = cache.keep("faces", "3", DIGEST, download())
    assert (kept.name, files(kept)) == (DIGEST, ["MLmodel", "model.onnx"])
    assert cache.find("faces", "3", None) == cache.find("faces", "3", DIGEST) == kept
    assert cache.find("faces", "3", "0" * 64) is None
    assert cache.find("faces", "4", None) is None
    assert cache.find("cats", "3", None) is None


def test_servers_do_not_share_versions(cache: ModelCache, tmp_path: Path) -> None:
    cache.keep("faces", "3", DIGEST, download())
    assert ModelCache(tmp_path / "models", "http://other").find("faces", "3", None) is None


def test_a_damaged_file_is_deleted_rather_than_used(cache: ModelCache) -> None:
    kept = cache.keep("faces", "3", None, download())
    (kept / "model.onnx").write_bytes(b"onn")
    assert cache.find("faces", "3", None) is None
    assert not kept.exists()


def test_a_download_of_another_digest_is_rejected_and_leaves_nothing(
    cache: ModelCache, tmp_path: Path
) -> None:
    with pytest.raises(ModelDamagedError, match="models:/faces/3 must have the SHA-256"):
        cache.keep("faces", "3", DIGEST, download(b"other"))
    assert files(tmp_path) == []


def test_a_download_that_fails_leaves_nothing(cache: ModelCache, tmp_path: Path) -> None:
    def fail(folder: Path) -> Path:
        download()(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        cache.keep("faces", "3", DIGEST, fail)
    assert files(tmp_path) == []


def test_what_a_killed_process_left_is_deleted_a_day_later(
    cache: ModelCache, tmp_path: Path
) -> None:
    parent = cache.keep("faces", "3", None, download()).parent
    for name, days in (("recent", 0.5), ("old", 2)):
        left = parent / f".downloading-{name}"
        left.mkdir()
        os.utime(left, (time.time() - days * 86400,) * 2)
    kept = cache.keep("faces", "3", None, download(b"other"))
    assert sorted(path.name for path in parent.iterdir()) == [".downloading-recent", kept.name]


def test_a_version_of_a_model_that_was_made_again_replaces_the_old_one(cache: ModelCache) -> None:
    old = cache.keep("faces", "1", None, download(b"old"))
    new = cache.keep("faces", "1", DIGEST, download())
    assert cache.find("faces", "1", None) == new
    assert not old.exists()


def test_two_processes_may_keep_the_same_version(cache: ModelCache) -> None:
    def after_the_other(folder: Path) -> Path:
        cache.keep("faces", "3", DIGEST, download())
        return download()(folder)

    kept = cache.keep("faces", "3", DIGEST, after_the_other)
    assert files(kept) == ["MLmodel", "model.onnx"]


def test_names_of_models_stay_inside_the_folder(cache: ModelCache, tmp_path: Path) -> None:
    kept = cache.keep("../../faces", "3", DIGEST, download())
    assert (tmp_path / "models").resolve() in kept.resolve().parents
