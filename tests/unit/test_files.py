"""Files that are whole or not there, on the disk before they have their names, and private."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from mask_ray import files
from mask_ray.config import MaskRayError
from mask_ray.files import appearing_file, make_private, publish_folder, write_text


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put on the disk and renamed, in this order."""
    noted: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        noted.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> Path:
        noted.append(f"rename {source.name} {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return noted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_return(
    folder: Path, calls: list[str]
) -> None:
    write_text(folder / "a.json", "{}")

    assert calls == ["fsync a.json.unfinished", "rename a.json.unfinished a.json", "fsync folder"]
    assert (folder / "a.json").read_text() == "{}"


def test_a_folder_is_on_the_disk_before_its_name(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "new" / "below").mkdir(parents=True)
    (folder / "new" / "below" / "1.jpg").write_bytes(b"1")

    def noted_sync(synced: Path) -> bool:
        calls.append(f"syncfs {synced.name}")
        return True

    monkeypatch.setattr(files, "_sync_file_system", noted_sync)
    publish_folder(folder / "new", folder / "done")

    assert calls == ["syncfs new", "rename new done", "fsync folder"]
    assert (folder / "done" / "below" / "1.jpg").read_bytes() == b"1"


def test_without_syncfs_each_file_and_folder_is_put_on_the_disk(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "new" / "below").mkdir(parents=True)
    (folder / "new" / "below" / "1.jpg").write_bytes(b"1")
    monkeypatch.setattr(files, "_sync_file_system", lambda folder: False)
    publish_folder(folder / "new", folder / "done")

    assert set(calls[:3]) == {"fsync new", "fsync below", "fsync 1.jpg"}
    assert calls[3:] == ["rename new done", "fsync folder"]


def test_an_error_leaves_the_old_file_and_nothing_unfinished(folder: Path) -> None:
    (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), appearing_file(folder / "a") as unfinished:
        unfinished.write_text("half")
        _ = 1 / 0

    assert (folder / "a").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_replaced(folder: Path) -> None:
    (folder / "a.unfinished").write_text("half of a longer text")
    write_text(folder / "a", "new", mode=0o600)

    assert (folder / "a").read_text() == "new"
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_full_disk_is_told_apart(small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full:
        write_text(small_disk / "a", "x" * 2**20)
    with pytest.raises(OSError, match="No such file") as missing:
        write_text(tmp_path / "missing" / "a", "x")

    assert files.is_full(full.value)
    assert not files.is_full(missing.value)
    assert list(small_disk.iterdir()) == []


def test_all_missing_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    made = make_private(tmp_path / "home" / "sources" / "downloads")

    assert [p.stat().st_mode & 0o777 for p in (made, *made.parents[:2])] == [0o700] * 3
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert make_private(made) == made


def test_state_of_an_earlier_version_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASK_RAY_HOME", "")
    state = tmp_path / ".mask_ray"
    state.mkdir(mode=0o755)
    make_private(state / "logs")

    assert state.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_the_user_made_keeps_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path))
    tmp_path.chmod(0o750)
    make_private(tmp_path / "logs")

    assert tmp_path.stat().st_mode & 0o777 == 0o750


class TestHome:
    """The folder of all state is checked before anything is done, and a mistake is one line."""

    def test_is_made_for_its_owner(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "a b" / "home"))
        files.check_home()
        assert stat.S_IMODE((tmp_path / "a b" / "home").stat().st_mode) == 0o700
        assert [*(tmp_path / "a b" / "home").iterdir()] == []

    @pytest.mark.parametrize("name", ["a%20b", "what?", "a#b", "two\nlines"])
    def test_has_no_sign_of_a_uri_in_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / name))
        with pytest.raises(MaskRayError, match=r"^MASK_RAY_HOME must have no '.*' in its path"):
            files.check_home()
        assert [*tmp_path.iterdir()] == []

    def test_that_cannot_be_made_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "home"):
            monkeypatch.setenv("MASK_RAY_HOME", str(path))
            with pytest.raises(MaskRayError, match="must be a folder that can be written; /"):
                files.check_home()

    def test_that_cannot_be_written_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(dir: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(dir))

        monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path))
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        message = f"written; {tmp_path}: Read-only file system. Set MASK_RAY_HOME to another"
        with pytest.raises(MaskRayError, match=message):
            files.check_home()

    def test_of_a_user_without_any_has_to_be_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(_: int) -> None:
            raise KeyError("uid not found")

        for name in ("HOME", "MASK_RAY_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", unknown)
        with pytest.raises(MaskRayError, match="has no home directory"):
            files.check_home()

    def test_may_be_set_for_such_a_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
        files.check_home()
        assert (tmp_path / "home").is_dir()
