"""Keeps a random share of the images with their answers, for later labelling.

Samples are Parquet files, which any tool for tables can read. Off unless `sample_share` and
`sample_path` are set: the photos show people, who must know about it. No request waits for a sample
or fails because of one.
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

from mask_ray import files

_logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 64 * 2**20
_MAX_HELD_BYTES = 2 * _MAX_FILE_BYTES
_CLOSE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it was received, and its answer.

    Args:
        time: Time of the answer, with a time zone.
        request_id: Id of its request.
        image: The encoded bytes.
        label: The answered label, which may be `uncertain`.
        probabilities: Probability by class.
        model: Name of the model.
        model_version: Its version, if it has one.
    """

    time: datetime
    request_id: str
    image: bytes
    label: str
    probabilities: Mapping[str, float]
    model: str
    model_version: str | None


class SampleLog:
    """Takes samples, and writes them in its own thread.

    A file is written when it has `max_rows` samples or 64 MiB, or when its first sample is
    `max_age_s` old. It gets its name once it is complete, so that no reader sees half a file. After
    an error, such as a full disk, one line is logged and no more samples are taken.

    Args:
        folder: Folder of the files; created if missing, readable only by its owner.
        share: Share of the offered images that is kept, in 0..1.
        max_rows: Most samples in a file.
        max_age_s: Longest wait of a sample for its file, in seconds.
        max_held_bytes: Most bytes of images that wait in memory; further samples are dropped.
        on_drop: Called for each dropped sample.
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
        """Keep this image with the probability `share`. Returns at once.

        Args:
            image: The encoded bytes.
            answer: Returns the fields of `Sample` except `time` and `image`; called only for
                images that are kept.
        """
        if not self._is_open or random.random() >= self._share:
            return
        if not self._hold(len(image)):
            self._on_drop()
            return
        self._waiting.put(Sample(time=datetime.now(UTC), image=image, **answer()))

    def close(self) -> None:
        """Write the remaining samples. Waits for the disk at most 10 seconds."""
        if self._is_open:
            self._is_open = False
            self._waiting.put(None)
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _hold(self, num_bytes: int) -> bool:
        """Reserve bytes, and return whether there was room for them."""
        with self._lock:
            has_room = self._held_bytes + num_bytes <= self._max_held_bytes
            self._held_bytes += num_bytes * has_room
        return has_room

    def _run(self) -> None:
        try:
            files.make_private(self._folder)
            while not self._is_last:
                samples = self._gather()
                if samples:
                    self._write(samples)
                self._hold(-sum(len(sample.image) for sample in samples))
        except Exception as error:
            self._is_open = False
            _logger.error("no more samples are kept in %s: %s", self._folder, error)

    def _gather(self) -> list[Sample]:
        """Wait for the samples of the next file. Empty after `close`, if none is left."""
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
        # Imported late to save memory in replicas that keep no samples.
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [asdict(s) | {"probabilities": list(s.probabilities.items())} for s in samples]
        name = f"{samples[0].time:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        table = pa.Table.from_pylist(rows, _schema())
        with files.appearing_file(self._folder / name, mode=files.PRIVATE_FILE) as unfinished:
            # Images are already compressed.
            pq.write_table(table, unfinished, compression="none", use_dictionary=False)


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
