"""How long training takes to a validation accuracy, here and in two Keras programs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks import ROOT
from benchmarks.support import cluster, machine, script, table, weights
from benchmarks.training import job, splits
from mask_ray.config import DataSettings, MaskRayError, Settings, TrainSettings
from mask_ray.data import sources
from mask_ray.models import pretrained

_PACKAGES = ("ray", "tensorflow", "keras", "horovod", "onnxruntime", "mlflow")

# Defaults of jobs.train.
IMAGE_SIZE: int = TrainSettings.model_fields["image_size"].default


class TimeToAccuracySettings(Settings):
    """Time training to a validation accuracy: mask_ray twice and two programs in plain Keras.

    One after another: the recipe of MLRun's mask-detection demo; the same model as mask_ray's in
    a plain Keras loop; mask_ray as a job on a Ray that is started for it, with an empty feature
    cache; the same again, with the cache kept. Prints a table, and where mask_ray's time goes.
    """

    data: Path = Field(
        Path("../shared/data/observations"),
        description="Folder with one sub-folder of photos per class.",
    )
    backbone_weights: Path = Field(weights.WEIGHTS, description=f"{weights.DESCRIPTION}.")
    target: float = Field(0.98, gt=0, le=1, description="Validation accuracy to reach.")
    max_epochs: int = Field(10, ge=1, description="Epochs after which a peer gives up.")
    num_workers: int = Field(2, ge=1, description="Horovod workers of mask_ray.")
    seed: int = Field(0, ge=0, description="Of weights, order and views.")


@dataclass(frozen=True)
class Measured:
    """One contestant.

    Args:
        name: For the table.
        training_s: Seconds of training until the target; infinite if it was not reached.
        num_epochs: Until the target, or all.
        val_accuracy: Of the last of these.
        command_s: Seconds of the whole command.
    """

    name: str
    training_s: float
    num_epochs: int
    val_accuracy: float
    command_s: float


def _run(settings: TimeToAccuracySettings) -> None:
    folder = Path(sources.check(str(settings.data)))
    weights_file = pretrained.find(str(settings.backbone_weights), alpha=1.0).resolve()
    print(machine.describe(*_PACKAGES), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        photos = splits.split(folder, DataSettings(data=str(folder)))
        photos.write(scratch / "photos.json")
        peers = [
            _peer(label, which, settings, weights_file, scratch)
            for label, which in (("MLRun demo's recipe", "demo"), ("plain Keras", "plain"))
        ]
        jobs = _jobs(settings, folder, weights_file, scratch)
    _print_table(settings, peers, jobs)
    print("\n" + _explanation(settings.target, photos))
    _print_stages(jobs)


def _peer(
    label: str, which: str, settings: TimeToAccuracySettings, weights_file: Path, scratch: Path
) -> Measured:
    print(f"\n{label}", flush=True)
    flags = {"photos": scratch / "photos.json", "weights": weights_file, "target": settings.target}
    flags |= {"max-epochs": settings.max_epochs, "seed": settings.seed}
    command = [sys.executable, "-m", "benchmarks.training.peers", which]
    command += [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    began = time.perf_counter()
    last_line = ""
    # TensorFlow writes about GPUs that are not there.
    log = scratch / f"{which}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            last_line = line
            if line.startswith("epoch"):
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-10:])
        raise MaskRayError(f"{label} did not succeed; the end of its errors:\n{tail}")
    epochs = [(e["seconds"], e["val_accuracy"]) for e in json.loads(last_line)["epochs"]]
    return _measured(label, epochs, settings.target, time.perf_counter() - began)


def _jobs(
    settings: TimeToAccuracySettings, folder: Path, weights_file: Path, scratch: Path
) -> dict[str, job.Job]:
    flags: dict[str, Any] = {"data": folder, "backbone-weights": weights_file}
    flags |= {"num-workers": settings.num_workers, "finetune-epochs": 0, "seed": settings.seed}
    num_cpus = max(settings.num_workers, os.cpu_count() or 1)
    done: dict[str, job.Job] = {}
    with cluster.running(num_cpus, home=scratch / "home") as ray:
        for label in ("mask_ray, empty cache", "mask_ray, features cached"):
            print(f"\n{label}", flush=True)
            log = Path(tempfile.gettempdir(), f"time_to_accuracy_{os.getpid()}_{len(done)}.log")
            done[label] = job.submit(ray, flags, log)
            print(f"  {done[label].seconds:.1f} s; log in {log}", flush=True)
    return done


def _measured(
    name: str, epochs: Sequence[tuple[float, float]], target: float, command_s: float
) -> Measured:
    """From seconds and validation accuracy of each epoch."""
    reached = [index for index, (_, accuracy) in enumerate(epochs, 1) if accuracy >= target]
    num_epochs = reached[0] if reached else len(epochs)
    seconds = sum(seconds for seconds, _ in epochs[:num_epochs])
    accuracy = epochs[num_epochs - 1][1]
    return Measured(name, seconds if reached else float("inf"), num_epochs, accuracy, command_s)


def _measured_job(name: str, done: job.Job, target: float) -> Measured:
    epochs = [(epoch.seconds, epoch.val_accuracy) for epoch in done.epochs]
    epochs[0] = (epochs[0][0] + done.features_s, epochs[0][1])
    return _measured(name, epochs, target, done.seconds)


def _print_table(
    settings: TimeToAccuracySettings, peers: list[Measured], jobs: dict[str, job.Job]
) -> None:
    demo, plain = peers
    ours = [_measured_job(name, done, settings.target) for name, done in jobs.items()]
    rows = [
        [
            measured.name,
            f"{measured.training_s:.1f}",
            f"{demo.training_s / measured.training_s:.1f}",
            f"{plain.training_s / measured.training_s:.1f}",
            str(measured.num_epochs),
            f"{measured.val_accuracy:.4f}",
            f"{measured.command_s:.1f}",
        ]
        for measured in (*peers, *ours)
    ]
    header = ["", f"training to {settings.target:g}, s", "demo / it", "plain / it", "epochs"]
    header += ["val accuracy", "command, s"]
    wanted = ["wanted of mask_ray", "", ">= 10", ">= 3", "", f">= {settings.target:g}", ""]
    print("\n" + table.render(header, [*rows, wanted]))
    for name, done in jobs.items():
        print(f"{name}: {len(done.epochs)} epochs in all, test accuracy {done.test_accuracy:.4f}")


def _explanation(target: float, photos: splits.Split) -> str:
    return f"""\
training: making or finding features, and each epoch with its validation, until the first that
  reaches {target:g}. All train on the same {len(photos.train)} photos and validate on the same \
{len(photos.val)} others; {len(photos.test)} more
  are left for mask_ray's test accuracy. Photos are read and decoded before.
command: the whole process; for mask_ray `ray job submit`, on a Ray that runs, until it returns,
  which also evaluates the model, exports it and registers it.
MLRun demo's recipe: frozen MobileNetV2 at 224 px and two dense layers, views by
  ImageDataGenerator. (The demo itself splits 80/20 by chance, copies of a photo on both sides.)
plain Keras: mask_ray's own model, at its {IMAGE_SIZE} px, frozen below the head; views by Keras
  layers in tf.data, ahead of the training and on all cores."""


def _print_stages(jobs: dict[str, job.Job]) -> None:
    stages = [done.stages for done in jobs.values()]
    rows = [[name, *(f"{stage[name]:.1f}" for stage in stages)] for name in stages[0]]
    rows.append(["whole command", *(f"{done.seconds:.1f}" for done in jobs.values())])
    print("\nWhere mask_ray's command spends its seconds:\n")
    print(table.render(["", *(name.removeprefix("mask_ray, ") for name in jobs)], rows))


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(TimeToAccuracySettings, _run)
