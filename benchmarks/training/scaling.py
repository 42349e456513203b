"""How fine-tuning scales over workers, measured here, and what it would do on GPUs, by arithmetic.

The projection takes for a step of n GPUs

    step = compute + exposed
    communication = 2 (n - 1) / n * gradient bytes / bandwidth + 2 (n - 1) * latency + cycle
    exposed = communication (nothing overlaps), or max(0, communication - 2 / 3 compute)
              (the backward pass, two thirds of the compute, hides what it can)

which is a ring allreduce (Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002)
and Horovod's cycle, the time it collects tensors for. Where its figures come from:

- one A100 in training: 3,454 images/s of EfficientNet-B0 at 224 px, mixed precision
  (https://github.com/NVIDIA/DeepLearningExamples, TensorFlow2/Classification/ConvNets), whose 390
  million multiply-adds an image are more than MobileNetV2's 300; smaller images in proportion to
  their pixels, as if nothing but arithmetic took time;
- NVLink of an A100, 300 GB/s each way: https://www.nvidia.com/en-us/data-center/a100/;
- a network of 400 Gbit/s a node, 50 GB/s: https://aws.amazon.com/ec2/instance-types/p4/.

Latencies are assumptions, and flags.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from pydantic import Field

from benchmarks import ROOT
from benchmarks.support import cluster, machine, script, table, weights
from mask_ray.config import MaskRayError, Settings, TrainSettings

_PACKAGES = ("ray", "tensorflow", "keras", "horovod")
_IMAGES_PER_WORKER = 32
_NUM_WORKERS = (1, 2, 4)

_GPU_IMAGES_PER_STEP = 128
_GPU_RATE_AT_224_PX = 3454.0
_CYCLE_S = 1e-3
_NVLINK_BYTES_PER_S, _NETWORK_BYTES_PER_S = 300e9, 50e9

_DEFAULTS = TrainSettings(data="synthetic")


class ScalingSettings(Settings):
    """Fine-tune with 1, 2 and 4 workers of 32 images a step, on as many cores while they last.

    Every process of a run, Ray's too, keeps to as many cores as the run has workers. Rates are
    medians over the epochs but the first, which also compiles. The share of communication comes
    from runs of their own, since writing Horovod's timeline takes time too.
    """

    data: Path = Field(
        Path("../shared/data/wild"), description="Folder with one sub-folder of photos per class."
    )
    backbone_weights: Path = Field(weights.WEIGHTS, description=f"{weights.DESCRIPTION}.")
    epochs: int = Field(4, ge=2, description="Epochs of each run.")
    nvlink_latency_us: float = Field(10, ge=0, description="Assumed, between GPUs of a node.")
    network_latency_us: float = Field(30, ge=0, description="Assumed, between nodes.")


@dataclass(frozen=True)
class Run:
    """A fine-tuning run.

    Args:
        images_per_second: Median over the epochs but the first.
        allreduce_share: Of the time of its training steps, in which rank 0 sums gradients; None
            without a timeline.
        wait_share: Of the same, between the first worker that has a gradient and the last.
    """

    images_per_second: float
    allreduce_share: float | None = None
    wait_share: float | None = None


def _run(settings: ScalingSettings) -> None:
    print(machine.describe(*_PACKAGES), flush=True)
    alone, together = _plain_rates(settings)
    print(f"plain Keras: {alone:.1f} images/s alone, {together:.1f} each at once", flush=True)
    runs = {n: _fine_tune(settings, n) for n in _NUM_WORKERS}
    traced = {n: _fine_tune(settings, n, timeline=True) for n in _NUM_WORKERS[1:]}
    print("\n" + _measured(runs, traced, together / alone))
    print("\n" + _projected(settings))


@contextmanager
def _on_cores(num_cores: int) -> Iterator[int]:
    """Keep this process, and what it starts, to the first cores; how many there were."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:num_cores])
    try:
        yield min(num_cores, len(cores))
    finally:
        os.sched_setaffinity(0, cores)


def _fine_tune(settings: ScalingSettings, num_workers: int, *, timeline: bool = False) -> Run:
    flags = {
        "data": settings.data.resolve(),
        "backbone-weights": settings.backbone_weights.resolve(),
        "num-workers": num_workers,
        "cpus-per-worker": 1,
        "batch-size": _IMAGES_PER_WORKER * num_workers,
        "head-epochs": 0,
        "finetune-epochs": settings.epochs,
        "patience": settings.epochs,
    }
    command = [sys.executable, "-m", "jobs.train", *(["--timeline"] if timeline else [])]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        _on_cores(num_workers) as num_cores,
        # One more than it has, for the tasks that feed the workers.
        cluster.running(num_workers + 1, Path(home)) as ray,
    ):
        done = subprocess.run(
            command, cwd=ROOT, env=ray.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise MaskRayError(f"the run of {num_workers} workers failed: {done.stderr[-2000:]}")
        run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
        run = _read(MlflowClient(f"sqlite:///{home}/mlflow.db"), run_id, timeline)
    note = ", with a timeline" if timeline else ""
    print(
        f"{num_workers} workers on {num_cores} cores{note}: {run.images_per_second:.1f} images/s",
        flush=True,
    )
    return run


def _read(client: MlflowClient, run_id: str, timeline: bool) -> Run:
    points = sorted(client.get_metric_history(run_id, "images_per_second"), key=_step)
    rates = [point.value for point in points]
    if not timeline:
        return Run(statistics.median(rates[1:]))
    events = events_of(Path(client.download_artifacts(run_id, "timeline.json")).read_text())
    metrics = client.get_run(run_id).data.metrics
    num_train = sum(v for name, v in metrics.items() if name.startswith("num_images_train_"))
    steps_us = sum(num_train / rate for rate in rates) * 1e6
    allreduce = covered((s, e) for name, s, e in events if name == "GLOO_ALLREDUCE")
    wait = covered((s, e) for name, s, e in events if name == "NEGOTIATE_ALLREDUCE")
    return Run(statistics.median(rates[1:]), allreduce / steps_us, wait / steps_us)


def _step(metric: Any) -> int:
    return int(metric.step)


def events_of(timeline: str) -> list[tuple[str, int, int]]:
    """Name, begin and end in microseconds of every activity in a timeline of Horovod.

    The file is a list of Chrome's trace events; an end belongs to the last begin of its tensor.
    """
    events: list[tuple[str, int, int]] = []
    begun: dict[int, list[tuple[str, int]]] = {}
    for event in json.loads(timeline):
        if event.get("ph") == "B":
            begun.setdefault(event["pid"], []).append((event["name"], event["ts"]))
        elif event.get("ph") == "E" and begun.get(event["pid"]):
            name, began = begun[event["pid"]].pop()
            events.append((name, began, event["ts"]))
    return events


def covered(intervals: Iterable[tuple[int, int]]) -> int:
    """The length of a union of intervals: tensors are summed at the same time."""
    total, reached = 0, 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _plain_rates(settings: ScalingSettings) -> tuple[float, float]:
    """Images a second of a plain Keras loop on one core: alone, and beside another's like it.

    Two cores may share caches, memory or even a physical core: more than twice the second figure
    no way of training can reach.
    """
    size = _DEFAULTS.image_size
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder, "noise.npz")
        images = rng.integers(0, 256, (10 * _IMAGES_PER_WORKER, size, size, 3), np.uint8)
        np.savez(arrays, image=images, label=np.arange(len(images)) % 2)
        with _plain_loops(settings, arrays, 1) as loops:
            alone = _rates(loops, settings.epochs)
        with _plain_loops(settings, arrays, 2) as loops:
            together = _rates(loops, settings.epochs)
    return statistics.median(alone), statistics.median(together)


@contextmanager
def _plain_loops(
    settings: ScalingSettings, arrays: Path, num_loops: int
) -> Iterator[list["subprocess.Popen[str]"]]:
    flags = {"arrays": arrays, "weights": settings.backbone_weights.resolve()}
    command = [sys.executable, "-m", "benchmarks.training.plain_loop"]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command += ["--finetune-from", _DEFAULTS.finetune_from, "--batch-size", f"{_IMAGES_PER_WORKER}"]
    cores = sorted(os.sched_getaffinity(0))
    loops = []
    for number in range(num_loops):
        loop = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(loop.pid, {cores[number % len(cores)]})
        loops.append(loop)
    try:
        yield loops
    finally:
        for loop in loops:
            loop.communicate()


def _rates(loops: list["subprocess.Popen[str]"], num_epochs: int) -> list[float]:
    """Images a second of each loop and epoch but the first, all loops at once."""
    rates = []
    for _ in range(num_epochs):
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("\n")
            loop.stdin.flush()
        rates.append([_answer(loop) for loop in loops])
    return [rate for epoch in rates[1:] for rate in epoch]


def _answer(loop: "subprocess.Popen[str]") -> float:
    assert loop.stdout is not None
    return float(json.loads(loop.stdout.readline())["images_per_second"])


def _measured(runs: dict[int, Run], traced: dict[int, Run], machine_efficiency: float) -> str:
    one = runs[1].images_per_second
    num_cores = len(os.sched_getaffinity(0))
    rows = []
    for n, run in runs.items():
        used = min(n, num_cores)
        shares = ["", ""]
        if n in traced:
            shares = [f"{traced[n].allreduce_share:.1%}", f"{traced[n].wait_share:.1%}"]
        efficiency = run.images_per_second / (one * used)
        rows.append(
            [f"{n} on {used}", f"{run.images_per_second:.1f}", f"{efficiency:.2f}", *shares]
        )
    rows.append(["wanted of 2 on 2", "", ">= 0.90", "", ""])
    header = ["workers on cores", "images/s", "efficiency", "allreduce", "waiting"]
    return f"""{table.render(header, rows)}
efficiency: images a second and core, of those of one worker on one core.
Two plain Keras loops at once, which exchange nothing, reach {machine_efficiency:.2f} of one alone:
  what the cores of this machine take from each other."""


def _projected(settings: ScalingSettings) -> str:
    num_bytes = 4 * _num_trained()
    links = {
        8: ("NVLink", _NVLINK_BYTES_PER_S, settings.nvlink_latency_us),
        64: ("network", _NETWORK_BYTES_PER_S, settings.network_latency_us),
    }
    rows = []
    for n, (link, bandwidth, latency_us) in links.items():
        for image_size in (224, _DEFAULTS.image_size):
            rate = _GPU_RATE_AT_224_PX * (224 / image_size) ** 2
            compute_s = _GPU_IMAGES_PER_STEP / rate
            for name, size in (("float32", num_bytes), ("fp16", num_bytes / 2)):
                communication_s = 2 * (n - 1) / n * size / bandwidth
                communication_s += 2 * (n - 1) * latency_us / 1e6 + _CYCLE_S
                hidden = max(0.0, communication_s - 2 / 3 * compute_s)
                rows.append(
                    [
                        f"{n} GPUs, {link}, {image_size} px, {name}",
                        f"{size / 1e6:.1f}",
                        f"{compute_s * 1e3:.1f}",
                        f"{communication_s * 1e3:.2f}",
                        f"{compute_s / (compute_s + communication_s):.2f}",
                        f"{compute_s / (compute_s + hidden):.2f}",
                    ]
                )
    header = ["projected, not measured", "gradients, MB", "compute, ms", "communication, ms"]
    header += ["efficiency, no overlap", "full overlap"]
    return f"""{table.render(header, rows)}
{_GPU_IMAGES_PER_STEP} images a step and GPU; formula and sources at the head of this script."""


def _num_trained() -> int:
    """Weights whose gradients the workers exchange in fine-tuning, with the default settings."""
    from mask_ray.models import keras_model as models

    model = models.build(
        num_classes=2,
        image_size=_DEFAULTS.image_size,
        alpha=_DEFAULTS.alpha,
        from_scratch=False,
    )
    models.thaw_backbone(model, _DEFAULTS.finetune_from)
    return sum(weight.numpy().size for weight in model.trainable_variables)


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(ScalingSettings, _run)
