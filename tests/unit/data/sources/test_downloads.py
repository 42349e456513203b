"""Archives over HTTP: resumed, checked against a digest, and bounded."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask_ray.config import DownloadLimits, MaskRayError
from mask_ray.data import sources
from mask_ray.data.sources import DataError, downloads
from tests.support import photo_archives, range_server
from tests.support.photo_archives import Usage, contents, written


class TestDownload:
    def test_a_cut_download_goes_on_where_it_ended(self) -> None:
        content = photo_archives.zip_bytes()
        with range_server.serve(content, cuts=[100, 50]) as served:
            assert contents(Path(sources.fetch(served.url))) == photo_archives.FILES
        assert served.statuses == [200, 206, 206]
        asked = [(r.get("Range"), r.get("If-Range")) for r in served.requests]
        assert asked == [(None, None), ("bytes=100-", '"v1"'), ("bytes=150-", '"v1"')]

    def test_a_later_run_goes_on_from_what_an_earlier_one_got(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        with range_server.serve(photo_archives.zip_bytes(), cuts=[100] + [0] * 5) as served:
            with pytest.raises(DataError, match="100 bytes are kept, and the next run resumes"):
                sources.fetch(served.url)
            served.cuts.clear()
            assert contents(Path(sources.fetch(served.url))) == photo_archives.FILES
        assert served.requests[-1]["Range"] == "bytes=100-"

    def test_an_archive_that_changed_meanwhile_is_fetched_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        changed = {"c/9.jpg": b"nine", "d/8.jpg": b"eight"}
        with range_server.serve(photo_archives.zip_bytes(), cuts=[100] + [0] * 5) as served:
            with pytest.raises(DataError):
                sources.fetch(served.url)
            served.cuts.clear()
            served.content, served.etag = photo_archives.zip_bytes(changed), '"v2"'
            assert contents(Path(sources.fetch(served.url))) == changed

    def test_a_server_that_fails_for_a_while_is_asked_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        with range_server.serve(photo_archives.zip_bytes(), failures=[503, 500]) as served:
            assert contents(Path(sources.fetch(served.url))) == photo_archives.FILES
            served.failures = [502] * 5 + [404]
            with pytest.raises(DataError, match="cannot be fetched: got status 502 Bad Gateway;"):
                sources.fetch(served.url.replace("photos", "others"))
            with pytest.raises(DataError, match="must answer with status 200; got 404 Not Found"):
                sources.fetch(served.url.replace("photos", "others"))
        assert served.statuses == [503, 500, 200] + [502] * 5 + [404]

    def test_a_part_that_was_not_asked_for_is_not_taken(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        with range_server.serve(photo_archives.zip_bytes(), cuts=[100], shift=5) as served:
            assert contents(Path(sources.fetch(served.url))) == photo_archives.FILES
        assert served.statuses == [200, 206, 200]

    def test_a_server_that_never_gives_what_is_asked_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        with range_server.serve(photo_archives.zip_bytes(), cuts=[100] * 9, shift=5) as served:  # noqa: SIM117
            with pytest.raises(DataError, match="cannot be fetched: "):
                sources.fetch(served.url)
        assert len(served.statuses) == 5

    def test_one_that_is_known_is_asked_for_but_not_sent_again(self) -> None:
        with range_server.serve(photo_archives.zip_bytes()) as served:
            assert sources.fetch(served.url) == sources.fetch(served.url)
        assert served.statuses == [200, 304]

    def test_without_a_validator_it_is_fetched_again(self) -> None:
        with range_server.serve(photo_archives.zip_bytes(), etag="", cuts=[100]) as served:
            assert sources.fetch(served.url) == sources.fetch(served.url)
        assert served.statuses == [200, 200, 200]

    def test_with_its_digest_the_server_is_not_asked_again(self) -> None:
        digest = hashlib.sha256(photo_archives.zip_bytes()).hexdigest()
        with range_server.serve(photo_archives.zip_bytes()) as served:
            first = sources.fetch(f"{served.url}#sha256={digest}")
        assert sources.fetch(f"{served.url}#sha256={digest}") == first
        assert len(served.requests) == 1

    def test_an_archive_here_may_be_checked_too(self, tmp_path: Path) -> None:
        archive = written(tmp_path, photo_archives.zip_bytes())
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert sources.fetch(f"{archive}#sha256={digest}") == sources.fetch(str(archive))
        with pytest.raises(DataError, match=r"must have the SHA-256 1+; what is there"):
            sources.fetch(f"{archive}#sha256={'1' * 64}")

    def test_another_digest_is_refused_now_and_later(self, home: Path) -> None:
        with range_server.serve(photo_archives.zip_bytes()) as served:
            sources.fetch(served.url)
            for _ in range(2):
                with pytest.raises(DataError, match=r"must have the SHA-256 0+; what is there"):
                    sources.fetch(f"{served.url}#sha256={'0' * 64}")
        assert not list(home.rglob("*.part"))

    def test_a_digest_is_of_64_digits(self) -> None:
        with pytest.raises(DataError, match="64 hexadecimal digits"):
            sources.fetch("http://127.0.0.1:1/photos.zip#sha256=abc")

    def test_an_answer_that_is_no_archive_is_named(self) -> None:
        with range_server.serve(b"<html>not here</html>") as served:  # noqa: SIM117
            with pytest.raises(DataError, match=r"http://\S+/photos\.zip cannot be unpacked"):
                sources.fetch(served.url)

    def test_a_server_that_does_not_answer_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/a\.zip cannot be fetched: "):
            sources.fetch("http://127.0.0.1:1/a.zip")

    def test_one_that_says_it_is_too_long_is_not_received(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_MAX_BYTES", "100")
        with range_server.serve(photo_archives.zip_bytes()) as served:
            with pytest.raises(DataError, match=r"must have at most 100 bytes \(MASK_RAY_DOWNLOAD"):
                sources.fetch(served.url)
            assert served.statuses == [200]
        assert not list(home.rglob("*.part"))

    def test_one_that_does_not_say_how_long_it_is_ends_at_the_limit(self, tmp_path: Path) -> None:
        part = tmp_path / "part"
        budget = downloads._Budget("http://host/a.zip", part, DownloadLimits(max_bytes=100))
        progress = downloads._Fetching("a.zip", None)
        with part.open("wb") as file, pytest.raises(DataError, match="it has 101 or more"):
            budget.receive(itertools.repeat(b"x"), file, progress)
        assert not part.exists()

    def test_a_slow_one_ends_at_the_deadline_and_keeps_what_it_has(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)

        def drops() -> Iterator[bytes]:
            nonlocal now
            while True:
                yield b"x"
                now += 20

        part = tmp_path / "part"
        budget = downloads._Budget("http://host/a.zip", part, DownloadLimits(timeout_s=50))
        progress = downloads._Fetching("a.zip", None)
        with part.open("wb") as file, pytest.raises(DataError, match="must arrive within 50 s"):
            budget.receive(drops(), file, progress)
        assert part.read_bytes() == b"xxx"

    def test_attempts_share_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(downloads, "_FIRST_WAIT_S", 0)
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_TIMEOUT_S", "1e-9")
        with range_server.serve(photo_archives.zip_bytes(), cuts=[1] * 99) as served:
            with pytest.raises(DataError, match=r"must arrive within 1e-09 s"):
                sources.fetch(served.url)
            assert served.statuses == []

    def test_a_reserve_stays_free_beside_a_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_RESERVE_BYTES", str(2**62))
        with range_server.serve(photo_archives.zip_bytes()) as served:  # noqa: SIM117
            with pytest.raises(DataError, match=r"must stay free \(MASK_RAY_DOWNLOAD_RESERVE"):
                sources.fetch(served.url)

    def test_a_disk_that_fills_meanwhile_is_one_line(
        self, small_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(small_disk / "home"))
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40))
        with range_server.serve(bytes(2**20)) as served:  # noqa: SIM117
            with pytest.raises(DataError, match="cannot be written under MASK_RAY_HOME: No space"):
                sources.fetch(served.url)
        assert not list(small_disk.rglob("*.part"))

    @pytest.mark.parametrize("value", ["0", "many", "1.5"])
    def test_limits_of_the_environment_are_checked(
        self, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        monkeypatch.setenv("MASK_RAY_DOWNLOAD_MAX_BYTES", value)
        with pytest.raises(MaskRayError, match="MASK_RAY_DOWNLOAD_MAX_BYTES must be"):
            DownloadLimits.from_environment()
