"""What Ray, Ray Data and Horovod cost a training step: against the same loop in Keras alone."""

import os
import statistics
import tempfile
from typing import TYPE_CHECKING

from pydantic import Field

from benchmarks.support import machine, script, table, weights
from mask_ray.config import Settings, Source, TrainSettings

if TYPE_CHECKING:
    from benchmarks.training.alternating import Pairs

_PACKAGES = ("ray", "tensorflow", "keras", "horovod")
_BATCH_SIZE = 32


class TrainerOverheadSettings(Settings):
    """Images a second of one HorovodTrainer worker against the same Keras loop without it.

    The two take turns on one core, an epoch each. Twice: with images as they are, when both do
    the same work, and with views augmented by Ray Data's tasks, which have the other cores.
    """

    data: Source = Field(
        "../shared/data/observations",
        description="Folder with one sub-folder of photos per class, or synthetic[:N].",
    )
    backbone_weights: str = Field(
        str(weights.WEIGHTS),
        min_length=1,
        description=f"{weights.DESCRIPTION}, or imagenet.",
    )
    epochs: int = Field(5, ge=1, description="Epochs of each that count.")


def _run(settings: TrainerOverheadSettings) -> None:
    print(machine.describe(*_PACKAGES), flush=True)
    core = _leave_one_core()
    from benchmarks.training import alternating  # Ray reads the environment as it is imported

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["MASK_RAY_HOME"] = home
        with alternating.own_ray():
            pairs = [
                alternating.compare(_training(settings, augmentation), core)
                for augmentation in (0, 1)
            ]
    _print_table(*pairs)
    print("\n" + _explanation(settings))


def _leave_one_core() -> int | None:
    """The core that the two loops share; this process and the Ray it starts keep to the others."""
    if not hasattr(os, "sched_setaffinity"):
        print("note: this system cannot keep a process to one core; all share all cores")
        return None
    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {core})
    return core


def _training(settings: TrainerOverheadSettings, augmentation: float) -> TrainSettings:
    epochs = 1 + settings.epochs
    return TrainSettings(
        data=settings.data,
        backbone_weights=settings.backbone_weights,
        batch_size=_BATCH_SIZE,
        head_epochs=0,
        finetune_epochs=epochs,
        patience=epochs,
        augmentation=augmentation,
        max_failures=0,
    )


def _print_table(as_they_are: "Pairs", augmented: "Pairs") -> None:
    both = {"images as they are": as_they_are, "augmented by Ray Data": augmented}
    rows = [
        [
            name,
            f"{statistics.median(pairs.plain):.1f}",
            f"{statistics.median(pairs.ray):.1f}",
            f"{statistics.median(pairs.ratios):.3f}",
            f"{min(pairs.ratios):.3f} to {max(pairs.ratios):.3f}",
            f"{pairs.own_cpu_s:.1f}",
            f"{pairs.others_cpu_s:.1f}",
        ]
        for name, pairs in both.items()
    ]
    rows.append(["wanted of the first", "", "", ">= 0.97", "", "", ""])
    header = ["", "plain Keras", "HorovodTrainer", "ratio", "lowest, highest"]
    print("\n" + table.render([*header, "worker CPU", "others' CPU"], rows))


def _explanation(settings: TrainerOverheadSettings) -> str:
    training = _training(settings, augmentation=0)
    return f"""\
Images a second of fine-tuning MobileNetV2 from {training.finetune_from} on, at \
{training.image_size} px, in batches of {training.batch_size}:
  medians of {settings.epochs} epochs each, after one that compiles.
plain Keras: the same model and compiled step on the same decoded images, in arrays in memory.
HorovodTrainer: one worker with mask_ray's own loop; its images stream through Ray Data. The
  plain loop never augments: in the second row it shows what the machine gave at that time.
Both have one thread on the same core and take turns, an epoch each; ratio is the median over
  neighbouring epochs. The rest of Ray has the other cores.
worker CPU, others' CPU: seconds that the worker, and all other processes of this Ray together,
  spend on 1,000 images."""


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(TrainerOverheadSettings, _run)
