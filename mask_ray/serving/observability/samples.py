"""A sampled share of the images that were asked about, with their answers, for later labelling.

Parquet files that any tool for tables reads. Off unless `sample_share` and `sample_path` are set:
the photos are of people who have to know of it. No request ever waits for a sample or fails with
one.
"""

import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 64 * 2**20
_MAX_HELD_BYTES = 2 * _MAX_FILE_BYTES
_CLOSE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it came, and its answer.

    Args:
        time: When it was answered, with its time zone.
        image: The encoded bytes.
        label: What was answered, maybe `uncertain`.
        probabilities: Of each class.
    """

    time: datetime
    request_id: str
    image: bytes
    label: str
    probabilities: Mapping[str, float]
    model: str
    model_version: str | None


class SampleLog:
    """Takes samples and writes them from a thread of its own.

    A file is written when it has `max_rows` samples or 64 MiB, or its first sample is `max_age_s`
    old. It gets its name once it is whole, so nobody reads half of one. After an error, such as a
    full disk, one line is logged and no more samples are taken.

    Args:
        folder: Where files go; made, and readable by its owner alone, when it is missing.
        share: Of the images offered, in 0..1.
        max_held_bytes: Of images in memory that are not written yet; more are dropped.
        on_drop: Called for each sample that is dropped.
    """

    def __init__(
        self,
        folder: Path,
        share: float,
        *,
        max_rows: int = 500,
        max_age_s: float = 60,
        max_held_bytes: int = _MAX_HELD_BYTES,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._share = folder, share
        self._max_rows, self._max_age_s = max_rows, max_age_s
        self._max_held_bytes, self._held_bytes = max_held_bytes, 0
        self._lock = threading.Lock()
        self._on_drop = on_drop
        self._waiting: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._is_open = share > 0
        self._is_last = False
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        if self._is_open:
            self._thread.start()

    def offer(self, image: bytes, answer: Callable[[], Mapping[str, Any]]) -> None:
        """Take a sample now and then. Returns at once.

        Args:
            image: The encoded bytes.
            answer: Gives the other fields of `Sample` but `time`; called for samples only.
        """
        if not self._is_open or random.random() >= self._share:
            return
        if not self._hold(len(image)):
            self._on_drop()
            return
        self._waiting.put(Sample(time=datetime.now(UTC), image=image, **answer()))

    def close(self) -> None:
        """Write what is there. Waits for the disk, 10 seconds at most."""
        if self._is_open:
            self._is_open = False
            self._waiting.put(None)
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _hold(self, num_bytes: int) -> bool:
        """Whether there is room for them."""
        with self._lock:
            has_room = self._held_bytes + num_bytes <= self._max_held_bytes
            self._held_bytes += num_bytes * has_room
        return has_room

    def _run(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._is_last:
                samples = self._gather()
                if samples:
                    self._write(samples)
                self._hold(-sum(len(sample.image) for sample in samples))
        except Exception as error:
            self._is_open = False
            _logger.error("sampling for %s has stopped: %s", self._folder, error)

    def _gather(self) -> list[Sample]:
        """The samples of the next file; empty at the very end."""
        samples: list[Sample] = []
        num_bytes, deadline_s = 0, 0.0
        while len(samples) < self._max_rows and num_bytes < _MAX_FILE_BYTES:
            timeout_s = max(0.0, deadline_s - time.monotonic()) if samples else None
            try:
                sample = self._waiting.get(timeout=timeout_s)
            except queue.Empty:
                break
            if sample is None:
                self._is_last = True
                break
            if not samples:
                deadline_s = time.monotonic() + self._max_age_s
            samples.append(sample)
            num_bytes += len(sample.image)
        return samples

    def _write(self, samples: list[Sample]) -> None:
        # Not imported above: a replica that takes no samples does without its memory.
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [asdict(s) | {"probabilities": list(s.probabilities.items())} for s in samples]
        name = f"{samples[0].time:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        unfinished = self._folder / f"{name}.part"
        try:
            # Images are compressed already.
            table = pa.Table.from_pylist(rows, _schema())
            pq.write_table(table, unfinished, compression="none", use_dictionary=False)
            unfinished.rename(self._folder / name)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "time": pa.timestamp("ms", tz="UTC"),
            "request_id": pa.string(),
            "image": pa.binary(),
            "label": pa.string(),
            "probabilities": pa.map_(pa.string(), pa.float32()),
            "model": pa.string(),
            "model_version": pa.string(),
        }
    )
