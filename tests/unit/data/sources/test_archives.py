"""Archives become folders; harmful ones become an error."""

import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from mask_ray.data import sources
from mask_ray.data.sources import DataError, archives
from tests.support import photo_archives
from tests.support.photo_archives import Usage, contents, written


class TestExtraction:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("photos.zip", photo_archives.zip_bytes()),
            ("in-a-folder.zip", photo_archives.zip_bytes(top="photos/of/")),
            ("photos.tar", photo_archives.tar_bytes(mode="w")),
            ("photos.tar.gz", photo_archives.tar_bytes(top="./photos/")),
            ("photos.tar.bz2", photo_archives.tar_bytes(mode="w:bz2")),
            ("photos.tar.xz", photo_archives.tar_bytes(mode="w:xz")),
        ],
    )
    def test_every_kind_gives_its_files(self, tmp_path: Path, name: str, content: bytes) -> None:
        fetched = Path(sources.fetch(str(written(tmp_path, content, name))))
        assert contents(fetched) == photo_archives.FILES

    @pytest.mark.parametrize(
        "content",
        [
            photo_archives.zip_bytes({"../out.jpg": b"x"}),
            photo_archives.zip_bytes({"/out.jpg": b"x"}),
            photo_archives.zip_bytes({"a/../../out.jpg": b"x"}),
            photo_archives.zip_bytes({"a\\..\\..\\out.jpg": b"x"}),
            photo_archives.zip_bytes({"C:/out.jpg": b"x"}),
            photo_archives.tar_bytes({"../out.jpg": b"x"}),
            photo_archives.tar_bytes({"/out.jpg": b"x"}),
        ],
    )
    def test_names_that_lead_elsewhere_are_refused(self, tmp_path: Path, content: bytes) -> None:
        target = tmp_path / "deep" / "target"
        with pytest.raises(DataError, match=r"must hold relative names without \.\."):
            archives.extract(written(tmp_path, content), target)
        assert not list(tmp_path.rglob("out.jpg"))
        assert not list(target.parent.iterdir())

    @pytest.mark.parametrize("pack", [photo_archives.zip_bytes, photo_archives.tar_bytes])
    @pytest.mark.parametrize(
        "name",
        ["a/\x1b[2J.jpg", "a/1\n2.jpg", "a/1\r.jpg", "a\x9b/1.jpg", "a/1\u2028.jpg", ".\x07"],
    )
    def test_names_with_escapes_or_line_breaks_are_refused(
        self, tmp_path: Path, pack: Callable[..., bytes], name: str
    ) -> None:
        archive = written(tmp_path, pack({"a/0.jpg": b"x", name: b"x"}))
        with pytest.raises(DataError, match="must hold names without control char") as raised:
            archives.extract(archive, tmp_path / "deep" / "target")
        assert str(raised.value).isprintable()
        assert not list((tmp_path / "deep").iterdir())

    def test_names_of_every_language_are_taken(self, tmp_path: Path) -> None:
        named = {"ä ö/写真.jpg": b"x", "b/\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}.jpg": b"y"}
        archives.extract(written(tmp_path, photo_archives.zip_bytes(named)), tmp_path / "target")
        assert contents(tmp_path / "target") == named

    def test_a_reserve_of_the_disk_stays_free(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_RESERVE_BYTES", str(2**62))
        with pytest.raises(DataError, match=r"more than the 0 bytes .* beside the reserve"):
            archives.extract(written(tmp_path, photo_archives.zip_bytes()), tmp_path / "target")

    def test_a_full_disk_is_one_line(
        self, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_RESERVE_BYTES", "0")
        archive = written(tmp_path, photo_archives.zip_bytes({"a/1.bmp": bytes(2**20)}))
        with pytest.raises(DataError, match=r"needs more than the \d+ bytes that are free"):
            archives.extract(archive, small_disk / "target")
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40))
        with pytest.raises(DataError, match=r"cannot be unpacked: .*No space left on device"):
            archives.extract(archive, small_disk / "target")
        assert list(small_disk.iterdir()) == []

    @pytest.mark.parametrize(
        "content",
        [
            photo_archives.zip_with_link(),
            photo_archives.tar_of(tarfile.SYMTYPE, link="1.jpg"),
            photo_archives.tar_of(tarfile.SYMTYPE, link="/etc/passwd"),
            photo_archives.tar_of(tarfile.LNKTYPE, link="../../secret"),
            photo_archives.tar_of(tarfile.CHRTYPE),
            photo_archives.tar_of(tarfile.FIFOTYPE),
        ],
    )
    def test_links_and_devices_are_refused(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(DataError, match="'a/odd' is a link, device or other"):
            archives.extract(written(tmp_path, content), tmp_path / "deep" / "target")
        assert not (tmp_path / "deep" / "target").exists()

    @pytest.mark.parametrize("pack", [photo_archives.zip_bytes, photo_archives.tar_bytes])
    def test_a_bomb_is_given_up_at_the_limit(self, tmp_path: Path, pack: object) -> None:
        bomb = pack({"a/1.bmp": bytes(4_000_000)})  # type: ignore[operator]
        limits = archives.Limits(always_bytes=1_000_000)
        with pytest.raises(DataError, match="must unpack to at most 1000000 bytes, 100 times"):
            archives.extract(written(tmp_path, bomb), tmp_path / "deep" / "target", limits)
        assert not list((tmp_path / "deep").iterdir())

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_a_header_that_would_fill_the_memory_is_refused(
        self, tmp_path: Path, kind: bytes
    ) -> None:
        archive = written(tmp_path, photo_archives.tar_with_header(kind, 2**26))
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="must have headers of at most 1048576 bytes; it"):
                archives.extract(archive, tmp_path / "deep" / "target")
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()
        assert not list((tmp_path / "deep").iterdir())

    def test_a_header_may_be_long(self, tmp_path: Path) -> None:
        archive = written(tmp_path, photo_archives.tar_with_header(tarfile.XHDTYPE, 2**19))
        archives.extract(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == {"a/1.jpg": b""}

    def test_what_is_hidden_counts_where_it_has_to_be_read(self, tmp_path: Path) -> None:
        limits = archives.Limits(always_bytes=1_000_000)
        hidden = {".hidden": bytes(4_000_000), "a/1.jpg": b"one"}
        archive = written(tmp_path, photo_archives.tar_bytes(hidden))
        with pytest.raises(DataError, match="must unpack to at most 1000000 bytes, 100 times"):
            archives.extract(archive, tmp_path / "of-tar", limits)
        archives.extract(written(tmp_path, photo_archives.zip_bytes(hidden)), tmp_path / "of-zip")
        assert contents(tmp_path / "of-zip") == {"a/1.jpg": b"one"}

    def test_what_is_hidden_in_a_zip_is_not_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened, open_member = [], zipfile.ZipFile.open

        def noted(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
            opened.append(entry.filename)
            return open_member(zipped, entry)

        archive = written(tmp_path, photo_archives.zip_bytes({".x": b"", "a/1.jpg": b"one"}))
        monkeypatch.setattr(zipfile.ZipFile, "open", noted)
        archives.extract(archive, tmp_path / "target")
        assert opened == ["a/1.jpg"]

    def test_too_many_members_are_refused(self, tmp_path: Path) -> None:
        archive = written(tmp_path, photo_archives.zip_bytes())
        with pytest.raises(DataError, match="at most 2 files; it holds more"):
            archives.extract(archive, tmp_path / "target", archives.Limits(max_members=2))

    @pytest.mark.parametrize(
        "content",
        [
            b"no archive at all" * 100,
            photo_archives.tar_bytes()[:-40],
            photo_archives.zip_bytes()[:200],
            photo_archives.zip_bytes({"a": b"file", "a/b": b"in a file"}),
        ],
    )
    def test_a_broken_archive_is_named_and_leaves_nothing(
        self, tmp_path: Path, content: bytes
    ) -> None:
        with pytest.raises(DataError, match=r"photos\.zip cannot be unpacked: "):
            archives.extract(written(tmp_path, content), tmp_path / "deep" / "target")
        assert not list((tmp_path / "deep").iterdir())

    def test_what_a_killed_run_left_is_no_hindrance(self, tmp_path: Path) -> None:
        photo_archives.folder(tmp_path / ".target.partial", {"stale.jpg": b"old"})
        archives.extract(written(tmp_path, photo_archives.zip_bytes()), tmp_path / "target")
        assert contents(tmp_path / "target") == photo_archives.FILES

    def test_the_folder_of_a_lone_class_is_not_entered(self, tmp_path: Path) -> None:
        lone = {"a/1.jpg": b"one", "a/2.jpg": b"two"}
        archive = written(tmp_path, photo_archives.zip_bytes(lone, top="photos/"))
        assert contents(Path(sources.fetch(str(archive)))) == lone

    def test_hidden_files_and_those_of_macos_are_left_out(self, tmp_path: Path) -> None:
        odd = {"__MACOSX/a/._1.jpg": b"", ".DS_Store": b"", "a/.hidden": b""}
        archive = written(tmp_path, photo_archives.zip_bytes(photo_archives.FILES | odd))
        assert contents(Path(sources.fetch(str(archive)))) == photo_archives.FILES

    def test_several_at_once_unpack_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = written(tmp_path, photo_archives.zip_bytes())
        unpacked, extract = [], archives.extract

        def counted(path: Path, folder: Path, name: str) -> None:
            unpacked.append(folder)
            extract(path, folder, name=name)

        monkeypatch.setattr(archives, "extract", counted)
        with ThreadPoolExecutor(4) as pool:
            fetched = set(pool.map(sources.fetch, [str(archive)] * 4))
        assert len(fetched) == len(unpacked) == 1
