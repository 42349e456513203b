"""Phases of a training run, their learning rates, and the position of a run in them."""

from dataclasses import dataclass
from math import inf

from mask_ray.config import TrainSettings


@dataclass(frozen=True)
class Phase:
    """Epochs that train the same layers: `head`, `finetune`, or `scratch` (all layers)."""

    name: str
    epochs: int
    learning_rate: float


def phases_of(settings: TrainSettings) -> list[Phase]:
    """Return the phases of a run in order, without those of no epochs."""
    rate = settings.learning_rate
    if settings.backbone_weights == "none":
        phases = [Phase("scratch", settings.finetune_epochs, rate)]
    else:
        finetune_rate = settings.finetune_learning_rate or rate / 10
        phases = [
            Phase("head", settings.head_epochs, rate),
            Phase("finetune", settings.finetune_epochs, finetune_rate),
        ]
    return [phase for phase in phases if phase.epochs]


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear from `start` to `peak`, then along a cosine to 0.

    Cosine decay: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983. Warm-up and
    scaling by the number of workers: Goyal et al. 2017, https://arxiv.org/abs/1706.02677.
    """

    start: float
    peak: float
    warmup_steps: int
    decay_steps: int


def schedule_of(
    phase: Phase, settings: TrainSettings, *, steps_per_epoch: int, num_workers: int
) -> Schedule:
    """Return the learning rate of a phase.

    Args:
        phase: One of `phases_of(settings)`.
        settings: Settings of the run.
        steps_per_epoch: Training steps of each worker in an epoch.
        num_workers: Number of workers.
    """
    num_steps = phase.epochs * steps_per_epoch
    warmup_steps = min(num_steps - 1, round(settings.warmup_epochs * steps_per_epoch))
    scaled = settings.scale_learning_rate
    return Schedule(
        start=phase.learning_rate if scaled else 0.0,
        peak=phase.learning_rate * (num_workers if scaled else 1),
        warmup_steps=warmup_steps,
        decay_steps=num_steps - warmup_steps,
    )


@dataclass(frozen=True)
class Position:
    """Progress of a run.

    Args:
        epoch: Finished epochs over all phases.
        phase: Index of the current phase; the number of phases when all are done.
        phase_epoch: Finished epochs of the current phase.
        best_loss: Lowest validation loss of any epoch.
        stale_epochs: Epochs since the lowest loss, or since this phase began.
        best_epoch: Title of the epoch with the lowest loss, such as `head 27/30`.
    """

    epoch: int = 0
    phase: int = 0
    phase_epoch: int = 0
    best_loss: float = inf
    stale_epochs: int = 0
    best_epoch: str = ""

    def after(self, val_loss: float, num_epochs: int, patience: int, title: str = "") -> "Position":
        """Return the position after one more epoch of the current phase.

        Args:
            val_loss: Validation loss of the epoch.
            num_epochs: Largest number of epochs of the phase.
            patience: Epochs without a lower loss after which the phase ends.
            title: Title of the epoch.
        """
        better = val_loss < self.best_loss
        best_loss = val_loss if better else self.best_loss
        best_epoch = title if better else self.best_epoch
        stale_epochs = 0 if better else self.stale_epochs + 1
        epoch = self.epoch + 1
        if self.phase_epoch + 1 == num_epochs or stale_epochs >= patience:
            return Position(epoch, self.phase + 1, 0, best_loss, 0, best_epoch)
        return Position(
            epoch, self.phase, self.phase_epoch + 1, best_loss, stale_epochs, best_epoch
        )


def last_epoch(phases: list[Phase], phase: int, done: Position) -> str:
    """Return the title of the last finished epoch, as it was printed.

    Args:
        phases: Phases of the run.
        phase: Index of the phase of that epoch.
        done: Position after it.
    """
    if done.phase > phase:
        return f"the end of {phases[phase].name}"
    return title_of(phases[phase], done.phase_epoch)


def title_of(phase: Phase, number: int) -> str:
    """Return the title of an epoch, counted from 1 in its phase."""
    return f"{phase.name} {number}/{phase.epochs}"
