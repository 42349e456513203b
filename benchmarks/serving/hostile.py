"""Requests that cost a service much, in turn and 32 at a time, beside ordinary photos.

What must be seen: no replica is replaced, no ordinary photo waits more than 2 s or fails, and the
replicas stay within the memory that they reserve.
"""

import asyncio
import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from pydantic import Field

from benchmarks.serving import comparison, load
from benchmarks.serving.servers import all_servers
from benchmarks.support import costly_files, machine, script, table
from mask_ray.config import ServeSettings, TrainSettings

_AT_A_TIME = 32
_NUM_ORDINARY = 4
_TIMEOUT_S = 60
_SAMPLE_EVERY_S = 0.25
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Hostile:
    """A request by the name that tables give it."""

    name: str
    path: str
    body: bytes


def hostile_requests() -> list[Hostile]:
    """Make all of them; each costs, or once cost, its receiver much more than its sender."""
    images = {
        "arithmetic scans": costly_files.progressive_jpeg(7_071, 7_071, 99, is_arithmetic=True),
        "Huffman scans": costly_files.progressive_jpeg(7_000, 7_000, 99),
        "scans within the limit": costly_files.progressive_jpeg(6_000, 6_000, 30),
        "Exif segments": costly_files.exif_segments(),
        "tags that overlap": costly_files.exif_of_overlapping_tags(),
        "iCCP chunks": costly_files.iccp_chunks(),
        "chunks without a byte": costly_files.png_of_tiny_chunks(),
        "comments": costly_files.gif_of_comments(40_000),
        "empty extensions": costly_files.gif_of_empty_extensions(),
        "texts of Exif": costly_files.png_of_profiles(),
        "groups of codes": costly_files.webp_of_groups(),
        "canvas": costly_files.animated_webp(7_000),
        "canvas within the limit": costly_files.animated_webp(5_000),
        "bytes": costly_files.noise(ServeSettings().max_image_bytes),
    }
    requests = [Hostile(name, "/predict", body) for name, body in images.items()]
    infer = "/v2/models/{model}/infer"
    return [*requests, Hostile("inputs", infer, costly_files.many_inputs())]


@dataclass
class Outcome:
    """What came of an attack.

    Args:
        ordinary: Ordinary photos by status, or by the name of the error.
        hostile: The hostile requests likewise, by their name and status.
        longest_s: The longest wait of an ordinary photo for its answer.
        seconds: How long it lasted.
        peak_bytes: Highest memory of one replica with its processes; a shared page counts once.
    """

    ordinary: Counter[str] = field(default_factory=Counter)
    hostile: Counter[tuple[str, str]] = field(default_factory=Counter)
    longest_s: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def per_second(self) -> float:
        """Ordinary photos that were classified in a second."""
        return self.ordinary["200"] / self.seconds


def attack(
    url: str,
    photos: Sequence[bytes],
    requests: Sequence[Hostile],
    seconds: float,
    replicas: Callable[[], list[psutil.Process]],
) -> Outcome:
    """Send ordinary photos all the time, and hostile requests in turn and then 32 at a time.

    Args:
        url: Of the service.
        photos: Ordinary photos.
        requests: Hostile requests; none: ordinary photos alone.
        seconds: How long.
        replicas: Returns the processes of the replicas, whose memory is watched.
    """
    return asyncio.run(_attack(url, photos, requests, seconds, replicas))


async def _attack(
    url: str,
    photos: Sequence[bytes],
    requests: Sequence[Hostile],
    seconds: float,
    replicas: Callable[[], list[psutil.Process]],
) -> Outcome:
    outcome = Outcome()
    began_s = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        model = await _model_name(client)
        is_over = lambda: time.monotonic() - began_s > seconds  # noqa: E731
        for number in range(_NUM_ORDINARY):
            bodies = itertools.islice(itertools.cycle(photos), number, None)
            group.create_task(_ask(client, bodies, outcome, is_over))
        group.create_task(_watch(replicas, outcome, is_over))
        if requests:
            group.create_task(_send_hostile(client, requests, model, outcome, is_over))
    outcome.seconds = time.monotonic() - began_s
    return outcome


async def _model_name(client: httpx.AsyncClient) -> str:
    name: str = (await client.get("/readyz")).json()["model"]["name"]
    return name


async def _ask(
    client: httpx.AsyncClient,
    bodies: Iterator[bytes],
    outcome: Outcome,
    is_over: Callable[[], bool],
) -> None:
    while not is_over():
        began_s = time.monotonic()
        outcome.ordinary[await _post(client, "/predict", next(bodies))] += 1
        outcome.longest_s = max(outcome.longest_s, time.monotonic() - began_s)


async def _send_hostile(
    client: httpx.AsyncClient,
    requests: Sequence[Hostile],
    model: str,
    outcome: Outcome,
    is_over: Callable[[], bool],
) -> None:
    for number in itertools.cycle((1, _AT_A_TIME)):
        for request in requests:
            if is_over():
                return
            path = request.path.format(model=model)
            coming = (_post(client, path, request.body) for _ in range(number))
            for status in await asyncio.gather(*coming):
                outcome.hostile[request.name, status] += 1


async def _post(client: httpx.AsyncClient, path: str, body: bytes) -> str:
    try:
        return str((await client.post(path, content=body)).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


async def _watch(
    replicas: Callable[[], list[psutil.Process]], outcome: Outcome, is_over: Callable[[], bool]
) -> None:
    while not is_over():
        peak = await asyncio.to_thread(lambda: max(map(memory_bytes, replicas()), default=0))
        outcome.peak_bytes = max(outcome.peak_bytes, peak)
        await asyncio.sleep(_SAMPLE_EVERY_S)


def memory_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and those that it started, in which a page counts once."""
    total_kb = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(OSError):
                rollup = Path("/proc", str(each.pid), "smaps_rollup").read_text()
                total_kb += sum(int(kb) for kb in _PSS.findall(rollup))
    return total_kb * 1024


class HostileSettings(comparison.ServingSettings):
    """Send ordinary photos, alone and then beside requests that cost much."""

    seconds: int = Field(120, ge=1, description="How long, each.")
    image_size: int = Field(
        TrainSettings(data="synthetic").image_size, description="Side of the model's input."
    )


def _run(settings: HostileSettings) -> None:
    print(machine.describe("ray", "fastapi", "onnxruntime", "pillow"), flush=True)
    photos = [path.read_bytes() for path in load.photos(settings.data, settings.num_photos)]
    server = all_servers("")["mask_ray"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        models = comparison.write_models(settings, settings.image_size, Path(name))
        with server.run(models) as url:
            url = url.removesuffix("/predict")
            before = _replicas()
            alone = attack(url, photos, [], settings.seconds, _replicas)
            beside = attack(url, photos, hostile_requests(), settings.seconds, _replicas)
            num_lost = len({*before} - {*_replicas()})
    print("\n" + _table(alone, beside, num_lost))


def _replicas() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::ServeReplica")
    ]


def _table(alone: Outcome, beside: Outcome, num_lost: int) -> str:
    reserved_mb = ServeSettings().replica_memory_bytes / 2**20
    rows = [
        ["ordinary photos a second", f"{alone.per_second:.1f}", f"{beside.per_second:.1f}"],
        ["longest wait of one", f"{alone.longest_s:.2f} s", f"{beside.longest_s:.2f} s"],
        ["their answers", _counts(alone.ordinary), _counts(beside.ordinary)],
        [
            f"peak of a replica ({reserved_mb:.0f} MiB reserved)",
            f"{alone.peak_bytes / 2**20:.0f} MiB",
            f"{beside.peak_bytes / 2**20:.0f} MiB",
        ],
        ["replicas that were replaced", "", str(num_lost)],
    ]
    answers = [[name, status, str(n)] for (name, status), n in sorted(beside.hostile.items())]
    return "\n\n".join(
        (
            table.render(["", "alone", "beside hostile requests"], rows),
            table.render(["hostile request", "answer", "times"], answers),
        )
    )


def _counts(answers: Counter[str]) -> str:
    return ", ".join(f"{number} x {name}" for name, number in answers.most_common())


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(HostileSettings, _run)
