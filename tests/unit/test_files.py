"""Files that are whole or not there, on the disk before they have their names, and private."""

import os
from pathlib import Path

import pytest

from mask_ray import files
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
