"""Fifteen minutes at 80% of the most that the service can answer: errors, and memory over time."""

import re
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import Field

from benchmarks.serving import comparison, load
from benchmarks.serving.load import Load
from benchmarks.serving.servers import all_servers
from benchmarks.support import machine, script, table
from mask_ray.config import MaskRayError, TrainSettings

_SAMPLE_EVERY_S = 2.0
_NUM_CONNECTIONS = 32
_MAX_LOAD_S = 20
# Buffers and allocators reach their size in it.
_SETTLED_AFTER_S = 60
_MEAN_OVER_S = 20
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


class SoakSettings(comparison.ServingSettings):
    """Find the highest rate, then ask at a share of it for long, and watch the replicas."""

    minutes: float = Field(15, gt=1.5, description="How long.")
    share: float = Field(0.8, gt=0, le=1, description="Of the highest rate.")
    image_size: int = Field(
        TrainSettings(data="synthetic").image_size, description="Side of the model's input."
    )


@dataclass(frozen=True)
class Sample:
    """Memory of all replicas together, in which a shared page counts once."""

    at_s: float
    pss_mb: float
    num_replicas: int


class _Watch(threading.Thread):
    """Sample the replicas that were there at the start, until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._replicas = _replicas()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample."""
        began_s = time.monotonic()
        while not self._stopped.wait(_SAMPLE_EVERY_S):
            sizes = [mb for pid in self._replicas if (mb := _pss_mb(pid)) is not None]
            self.samples.append(Sample(time.monotonic() - began_s, sum(sizes), len(sizes)))

    def stop(self) -> None:
        """Wait for the last sample."""
        self._stopped.set()
        self.join()


def _run(settings: SoakSettings) -> None:
    print(machine.describe("ray", "fastapi", "onnxruntime"), flush=True)
    load.check_wrk()
    photos = load.photos(settings.data, settings.num_photos)
    server = all_servers("")["mask_ray"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        models = comparison.write_models(settings, settings.image_size, folder)
        bodies = load.write_bodies(photos, server.form, folder / "bodies")
        with server.run(models) as url:
            highest, soak, samples = _soak(settings, url, bodies)
    print("\n" + _table(settings, highest, soak, samples))


def _soak(settings: SoakSettings, url: str, bodies: Path) -> tuple[Load, Load, list[Sample]]:
    form, n = load.RAW, _NUM_CONNECTIONS
    load.drive(url, bodies, form, num_connections=n, seconds=settings.warm_up_s)
    highest = load.drive(url, bodies, form, num_connections=n, seconds=_MAX_LOAD_S)
    rate = settings.share * highest.per_second
    print(f"{highest.per_second:.1f} requests/s at most; soaking at {rate:.1f}", flush=True)
    watch = _Watch()
    watch.start()
    soak = load.drive(
        url,
        bodies,
        form,
        num_connections=n,
        seconds=60 * settings.minutes,
        per_second=rate,
    )
    watch.stop()
    return highest, soak, watch.samples


def _replicas() -> list[int]:
    """Process ids.

    Raises:
        MaskRayError: there are none.
    """
    named = psutil.process_iter(["name", "cmdline"])
    pids = [p.pid for p in named if (p.info["cmdline"] or [""])[0].startswith("ray::ServeReplica")]
    if not pids:
        raise MaskRayError("no replica runs on this machine")
    return pids


def _pss_mb(pid: int) -> float | None:
    with suppress(OSError):
        rollup = Path("/proc", str(pid), "smaps_rollup").read_text()
        return sum(int(kb) for kb in _PSS.findall(rollup)) / 1024
    return None


def _table(settings: SoakSettings, highest: Load, soak: Load, samples: list[Sample]) -> str:
    end_s = samples[-1].at_s
    settled = _mean_mb(samples, _SETTLED_AFTER_S, _SETTLED_AFTER_S + _MEAN_OVER_S)
    last = _mean_mb(samples, end_s - _MEAN_OVER_S, end_s)
    rows = [
        ["highest rate", f"{highest.per_second:.1f} requests/s"],
        ["rate of the soak", f"{soak.per_second:.1f} requests/s"],
        ["requests", str(soak.num_answers)],
        ["errors", str(soak.num_errors)],
        ["p50, p99", f"{soak.p50_ms:.1f}, {soak.p99_ms:.1f} ms"],
        ["replicas at the start and the end", _replica_counts(samples)],
        ["their memory after the first minute", f"{settled:.1f} MiB"],
        ["their memory at the end", f"{last:.1f} MiB"],
        ["growth", f"{100 * (last / settled - 1):+.2f}%"],
    ]
    title = (
        f"{settings.minutes:g} minutes at {settings.share:.0%} load, {settings.image_size} px "
        f"(PSS: a shared page counts once; means of {_MEAN_OVER_S} s)"
    )
    return f"{title}\n\n{table.render(['', ''], rows)}"


def _mean_mb(samples: list[Sample], from_s: float, to_s: float) -> float:
    within = [sample.pss_mb for sample in samples if from_s <= sample.at_s <= to_s]
    return sum(within) / len(within)


def _replica_counts(samples: list[Sample]) -> str:
    return f"{samples[0].num_replicas}, {samples[-1].num_replicas}"


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(SoakSettings, _run)
