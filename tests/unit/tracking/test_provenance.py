"""The commit that a run is tagged with, of real repositories."""

import shutil
import subprocess
from pathlib import Path

import pytest

import mask_ray
from mask_ray.tracking import provenance


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
    monkeypatch.setattr(provenance, "_installed_from", lambda: None)
    return folder


def test_the_commit_is_the_checkouts(checkout: Path) -> None:
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")


def test_changed_code_is_dirty_and_other_files_are_not(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not of the repository")
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")

    (checkout / "mask_ray" / "__init__.py").write_text("changed = True")
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_copy_is_compared_with_the_checkout_it_was_installed_from(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout / "mask_ray", copy / "mask_ray")
    monkeypatch.setattr(mask_ray, "__file__", str(copy / "mask_ray" / "__init__.py"))
    assert provenance.git_commit() == "unknown"

    monkeypatch.setattr(provenance, "_installed_from", lambda: checkout)
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")

    (copy / "mask_ray" / "__init__.py").write_text("changed = True")
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_the_diff_is_the_patch_that_makes_this_code_of_the_commit(checkout: Path) -> None:
    assert provenance.git_diff() == ""
    assert provenance.tags()["git_diff_digest"] == "none"

    (checkout / "mask_ray" / "__init__.py").write_text("changed = True\n")
    patch = checkout.parent / "working_tree.patch"
    patch.write_text(provenance.git_diff())
    assert len(provenance.tags()["git_diff_digest"]) == 64
    git(checkout, "checkout", "-q", ".")
    git(checkout, "apply", str(patch))
    assert (checkout / "mask_ray" / "__init__.py").read_text() == "changed = True\n"


def test_the_lock_is_of_the_copy_or_else_of_the_checkout(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.lock_digest() == "unknown"
    monkeypatch.setattr(provenance, "_installed_from", lambda: tmp_path)
    (tmp_path / "uv.lock").write_text("of the installed")
    installed = provenance.lock_digest()
    (checkout / "uv.lock").write_text("of the copy")
    assert len({"unknown", installed, provenance.lock_digest()}) == 3


def test_what_differs_is_named_with_both_values() -> None:
    earlier = {"git_commit": "abc", "lock_digest": "1", "platform": "Linux"}
    own = {"git_commit": "abd", "lock_digest": "1", "platform": "Linux"}
    assert provenance.differences(earlier, own) == ["the code (git_commit): abc there, abd here"]
    assert provenance.differences(own, own) == []


def test_without_git_the_commit_is_unknown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit() == "unknown"


def test_the_environment_overrides_the_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK_RAY_GIT_COMMIT", "release-7")
    assert provenance.git_commit() == "release-7"


KEYS = [
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "AKIA" + "ABCDEFGH12345678",
    "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    'token = "' + "0123456789abcdef0123456789abcdef" + '"',
    "ghp_" + "a1" * 18,
    "hf_" + "aB3" * 10,
    "url: postgres://me:hunter2@db.example.org/photos",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_patch_holds_no_file_with_a_key(checkout: Path, key: str) -> None:
    for name in ("a.py", "b.py", "c.py"):
        (checkout / name).write_text("first\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "Second")
    for name in ("a.py", "c.py"):
        (checkout / name).write_text(f"changed in {name}\n")
    (checkout / "b.py").write_text(f"first\n{key}\n")

    patch = provenance.shareable_diff()

    assert key not in patch and key in provenance.git_diff()
    assert "+changed in a.py" in patch and "+changed in c.py" in patch
    assert patch.startswith("# left out: 'b.py' holds what looks like a key\n")


def test_a_key_that_is_removed_is_not_in_it_either(checkout: Path) -> None:
    (checkout / "a.py").write_text(f"{KEYS[0]}\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "Second")
    (checkout / "a.py").write_text("")

    assert KEYS[0] not in provenance.shareable_diff()


def test_a_patch_holds_nothing_that_git_ignores(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("local.yaml\n")
    for name in ("local.yaml", "ä b.py", "deploy.pem"):
        (checkout / name).write_text("first\n")
    git(checkout, "add", "-f", ".")
    git(checkout, "commit", "-q", "-m", "Second")
    for name in ("local.yaml", "ä b.py", "deploy.pem"):
        (checkout / name).write_text("changed\n")
    (checkout / "untracked.txt").write_text("changed\n")

    patch = provenance.shareable_diff()

    assert patch.count("+changed") == 1
    assert "'local.yaml' is ignored by git" in patch
    assert "'deploy.pem' has the name of a file of keys" in patch


@pytest.mark.parametrize(
    "line",
    [
        "token_file = settings.token_file_of_version_2(path)",
        "def check_token_of_request_1(request: Request) -> None:",
        "password: str | None = None",
        "see https://example.org:8080/a@b",
        'uri = "https://user:${SECRET}@host"',
        "tokens = " + "tokens_of_environment_2_and_more()",
    ],
)
def test_code_about_secrets_is_no_secret(checkout: Path, line: str) -> None:
    (checkout / "mask_ray" / "__init__.py").write_text(f"{line}\n")

    assert f"+{line}" in provenance.shareable_diff()


def test_a_patch_of_all_kinds_of_changes_applies(checkout: Path, tmp_path: Path) -> None:
    (checkout / "old.py").write_text("a\n" * 20)
    (checkout / "gone.bin").write_bytes(bytes(range(256)))
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "Second")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    git(checkout, "mv", "old.py", "new.py")
    git(checkout, "rm", "-q", "gone.bin")
    (checkout / "mask_ray" / "__init__.py").write_text("x = 1")
    (checkout / "mask_ray" / "__init__.py").chmod(0o755)

    (tmp_path / "working_tree.patch").write_text("# left out: 'a'\n" + provenance.shareable_diff())
    git(clone, "apply", str(tmp_path / "working_tree.patch"))

    assert (clone / "new.py").exists() and not (clone / "gone.bin").exists()
    assert (clone / "mask_ray" / "__init__.py").read_text() == "x = 1"
