"""The commit that a run is tagged with, of real repositories."""

import shutil
import subprocess
from pathlib import Path

import pytest

import mask_ray
from mask_ray import tracking


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the package in it, which stands for the one that is imported."""
    folder = tmp_path / "checkout"
    package = folder / "mask_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "First")
    git(folder, "tag", "v1")
    monkeypatch.setattr(mask_ray, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(tracking, "_installed_from", lambda: None)
    return folder


def test_the_commit_is_the_checkouts(checkout: Path) -> None:
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")


def test_changed_code_is_dirty_and_other_files_are_not(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not of the repository")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")

    (checkout / "mask_ray" / "__init__.py").write_text("changed = True")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_copy_is_compared_with_the_checkout_it_was_installed_from(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout / "mask_ray", copy / "mask_ray")
    monkeypatch.setattr(mask_ray, "__file__", str(copy / "mask_ray" / "__init__.py"))
    assert tracking.git_commit() == "unknown"

    monkeypatch.setattr(tracking, "_installed_from", lambda: checkout)
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD")

    (copy / "mask_ray" / "__init__.py").write_text("changed = True")
    assert tracking.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_without_git_the_commit_is_unknown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tracking.git_commit() == "unknown"


def test_the_environment_overrides_the_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK_RAY_GIT_COMMIT", "release-7")
    assert tracking.git_commit() == "release-7"
