"""How fine-tuning scales: one worker on one core, two on two, four on two, and what GPUs would do.

The projection is arithmetic, not a measurement. A step on n workers takes

    compute + 2 (n - 1) / n * gradient bytes / bandwidth + 2 (n - 1) * latency

which is a ring allreduce that overlaps nothing (Patarasuk and Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002); with full overlap the second and third term hide behind
the backward pass. Link speeds: NVLink of an A100, 300 GB/s each way
(https://www.nvidia.com/en-us/data-center/a100/); between nodes 400 Gbit/s, that is 50 GB/s
(https://aws.amazon.com/ec2/instance-types/p4/). Latencies and the rate of one GPU are assumptions.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pydantic import Field

from benchmarks import machine, table
from benchmarks.job import ROOT
from mask_ray import cli
from mask_ray.config import MaskRayError, Settings, TrainSettings

_PACKAGES = ("ray", "tensorflow", "keras", "horovod")
_IMAGES_PER_WORKER = 32

_LINKS = {
    8: ("NVLink, 300 GB/s", 300e9, 10e-6),
    64: ("network, 50 GB/s a node", 50e9, 30e-6),
}


class ScalingSettings(Settings):
    """Fine-tune with 1, 2 and 4 workers of 32 images a step, on as many cores as there are.

    Every process of a run, Ray Data's too, stays on as many cores as it has workers. Rates are
    medians over the epochs but the first, which also compiles. The share of communication comes
    from runs of their own, since writing Horovod's timeline takes time too.
    """

    data: Path = Field(
        Path("../shared/data/observations"),
        description="Folder with one sub-folder of photos per class.",
    )
    backbone_weights: Path = Field(
        Path("../shared/weights/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
        description="ImageNet weights of MobileNetV2 without top, as .h5.",
    )
    epochs: int = Field(4, ge=2, description="Epochs of each run.")
    gpu_images_per_second: float = Field(
        3000, gt=0, description="Assumed rate of one GPU in fine-tuning, for the projection."
    )


@dataclass(frozen=True)
class Run:
    """A fine-tuning run.

    Args:
        images_per_second: Median over the epochs but the first.
        allreduce_share: Of the time of its steps, while rank 0 sums gradients; None without a
            timeline.
        wait_share: Of the same, while rank 0 waits for the others to have theirs.
    """

    images_per_second: float
    allreduce_share: float | None = None
    wait_share: float | None = None


def main() -> None:
    """Run all and print the tables."""
    settings = cli.parse(ScalingSettings, sys.argv[1:])
    print(machine.describe(*_PACKAGES), flush=True)
    try:
        runs = {n: _fine_tune(settings, n) for n in (1, 2, 4)}
        traced = {n: _fine_tune(settings, n, timeline=True) for n in (2, 4)}
    except MaskRayError as error:
        cli.fail(str(error), exit_code=1)
    print("\n" + _measured(runs, traced))
    print("\n" + _projected(settings))


def _fine_tune(settings: ScalingSettings, num_workers: int, *, timeline: bool = False) -> Run:
    cores = sorted(os.sched_getaffinity(0))[:num_workers]
    flags = {
        "data": settings.data.absolute(),
        "backbone-weights": settings.backbone_weights.absolute(),
        "num-workers": num_workers,
        "batch-size": _IMAGES_PER_WORKER * num_workers,
        "head-epochs": 0,
        "finetune-epochs": settings.epochs,
        "patience": settings.epochs,
    }
    train = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.train", *train, *(["--timeline"] if timeline else [])],
            cwd=ROOT,
            env=os.environ | {"MASK_RAY_HOME": home, "RAY_ADDRESS": "local"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MaskRayError(f"the run of {num_workers} workers failed: {done.stderr[-2000:]}")
        run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
        print(
            f"{num_workers} workers on {len(cores)} cores{', traced' * timeline}: done", flush=True
        )
        return _read(MlflowClient(f"sqlite:///{home}/mlflow.db"), run_id, timeline)


def _read(client: MlflowClient, run_id: str, timeline: bool) -> Run:
    points = sorted(client.get_metric_history(run_id, "images_per_second"), key=_step)
    rate = statistics.median(point.value for point in points[1:])
    if not timeline:
        return Run(rate)
    events = _events(Path(client.download_artifacts(run_id, "timeline.json")).read_text())
    span = max(end for _, _, end in events) - min(start for _, start, _ in events)
    allreduce = _covered((s, e) for name, s, e in events if name == "GLOO_ALLREDUCE")
    wait = _covered((s, e) for name, s, e in events if name == "NEGOTIATE_ALLREDUCE")
    return Run(rate, allreduce / span, wait / span)


def _step(metric: Any) -> int:
    return int(metric.step)


def _events(text: str) -> list[tuple[str, int, int]]:
    """Name, begin and end in microseconds of every activity of a timeline.

    A line of it is an event of https://ui.perfetto.dev's JSON format; an end belongs to the
    last begin of the same tensor.
    """
    events, open_ones = [], dict[int, list[tuple[str, int]]]()
    for line in re.findall(r"^\{.*\}", text, re.MULTILINE):
        event = json.loads(line)
        if event["ph"] == "B":
            open_ones.setdefault(event["pid"], []).append((event["name"], event["ts"]))
        elif event["ph"] == "E" and open_ones.get(event["pid"]):
            name, began = open_ones[event["pid"]].pop()
            events.append((name, began, event["ts"]))
    return events


def _covered(intervals: Iterable[tuple[int, int]]) -> int:
    """The length of a union of intervals: tensors are summed at the same time."""
    total, reached = 0, 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _measured(runs: dict[int, Run], traced: dict[int, Run]) -> str:
    one = runs[1].images_per_second
    num_cores = len(os.sched_getaffinity(0))
    rows = []
    for n, run in runs.items():
        shares = traced.get(n, Run(0, 0.0, 0.0))
        efficiency = run.images_per_second / (one * min(n, num_cores))
        rows.append(
            [
                f"{n} on {min(n, num_cores)} cores",
                f"{run.images_per_second:.1f}",
                f"{efficiency:.2f}",
                f"{shares.allreduce_share:.1%}",
                f"{shares.wait_share:.1%}",
            ]
        )
    return table.render(["workers", "images/s", "a core, of 1", "allreduce", "waiting"], rows)


def _projected(settings: ScalingSettings) -> str:
    num_bytes = 4 * _num_trained()
    compute_s = _IMAGES_PER_WORKER * 4 / settings.gpu_images_per_second
    rows = []
    for n, (link, bandwidth, latency_s) in _LINKS.items():
        for name, size in (("float32", num_bytes), ("fp16", num_bytes / 2)):
            comm_s = 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * latency_s
            rows.append(
                [
                    f"{n} GPUs, {link}, {name}",
                    f"{size / 1e6:.1f}",
                    f"{comm_s * 1e3:.2f}",
                    f"{compute_s * 1e3:.1f}",
                    f"{compute_s / (compute_s + comm_s):.2f}",
                    f"{min(1.0, compute_s / max(compute_s, comm_s)):.2f}",
                ]
            )
    header = ["projected", "MB", "allreduce ms", "compute ms", "no overlap", "full overlap"]
    note = (
        f"assumed: {settings.gpu_images_per_second:.0f} images/s and {_IMAGES_PER_WORKER * 4} "
        "images a step and GPU; latency of 10 us within a node and 30 us between nodes"
    )
    return table.render(header, rows) + "\n" + note


def _num_trained() -> int:
    """Weights whose gradients the workers exchange in fine-tuning, of the default model."""
    from mask_ray import model as models

    defaults = {name: field.default for name, field in TrainSettings.model_fields.items()}
    model = models.build(
        num_classes=2,
        image_size=defaults["image_size"],
        alpha=defaults["alpha"],
        from_scratch=False,
    )
    models.thaw_backbone(model, defaults["finetune_from"])
    return sum(weight.numpy().size for weight in model.trainable_variables)


if __name__ == "__main__":
    main()
