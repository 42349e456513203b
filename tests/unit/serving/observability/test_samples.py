"""Samples for labelling: what is kept, what is dropped, and that nothing else is harmed."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mask_ray.serving.observability.samples import SampleLog
from tests.support.polling import wait_until

ANSWER = {
    "request_id": "7",
    "label": "with_mask",
    "probabilities": {"with_mask": 0.75, "without_mask": 0.25},
    "model": "mask-detector",
    "model_version": "3",
}


def offer(samples: SampleLog, *images: bytes) -> None:
    for image in images:
        samples.offer(image, lambda: ANSWER)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for file in files_in(folder) for row in pq.read_table(file).to_pylist()]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.parquet"))


def test_samples_can_be_read_back(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path / "new" / "samples", share=1)
    offer(samples, b"one", b"two")
    samples.close()

    first, second = rows_in(tmp_path / "new" / "samples")
    assert (first["image"], second["image"]) == (b"one", b"two")
    assert dict(first.pop("probabilities")) == ANSWER["probabilities"]
    assert abs((datetime.now(UTC) - first["time"]).total_seconds()) < 60
    assert {name: first[name] for name in ("request_id", "label", "model", "model_version")} == {
        name: ANSWER[name] for name in ("request_id", "label", "model", "model_version")
    }


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path / "samples", share=1)
    offer(samples, b"one")
    samples.close()

    assert (tmp_path / "samples").stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_with_no_share(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path / "samples", share=0)
    offer(samples, b"one")
    samples.close()

    assert not (tmp_path / "samples").exists()
    assert not [t for t in threading.enumerate() if t.name == "samples"]


def test_about_the_share_is_kept(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path, share=0.25)
    offer(samples, *(b"image" for _ in range(4000)))
    samples.close()

    assert 850 < len(rows_in(tmp_path)) < 1150


def test_a_full_file_is_followed_by_the_next(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path, share=1, max_rows=2)
    offer(samples, b"1", b"2", b"3", b"4", b"5")
    samples.close()

    sizes = sorted(pq.read_table(file).num_rows for file in files_in(tmp_path))
    assert sizes == [1, 2, 2]


def test_a_file_does_not_wait_forever_for_more(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path, share=1, max_age_s=0.05)
    offer(samples, b"one")

    wait_until(lambda: files_in(tmp_path))
    assert [row["image"] for row in rows_in(tmp_path)] == [b"one"]
    samples.close()


def test_what_memory_has_no_room_for_is_dropped(tmp_path: Path) -> None:
    dropped: list[int] = []
    samples = SampleLog(tmp_path, share=1, max_held_bytes=10, on_drop=lambda: dropped.append(1))
    offer(samples, b"x" * 6, b"y" * 6, b"z" * 4)
    samples.close()

    assert [row["image"] for row in rows_in(tmp_path)] == [b"x" * 6, b"z" * 4]
    assert dropped == [1]


def test_memory_is_free_again_once_samples_are_written(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path, share=1, max_rows=1, max_held_bytes=10)
    offer(samples, b"x" * 6)
    wait_until(lambda: samples._held_bytes == 0)
    offer(samples, b"y" * 6)
    samples.close()

    assert len(rows_in(tmp_path)) == 2


def test_a_full_disk_is_one_line_and_the_end_of_sampling(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = SampleLog(small_disk, share=1, max_rows=1)
    offer(samples, b"x" * 2**20, b"y" * 2**20)
    wait_until(lambda: caplog.records)
    offer(samples, b"z")
    samples.close()

    (record,) = caplog.records
    assert f"no more samples are kept in {small_disk}" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert list(small_disk.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    samples = SampleLog(tmp_path / "file", share=1)
    offer(samples, b"one")
    wait_until(lambda: caplog.records)
    samples.close()

    assert len(caplog.records) == 1
