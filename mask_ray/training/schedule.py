"""The plan of a training run: which phases, how long, at what learning rate, and where it is."""

from dataclasses import dataclass
from math import inf

from mask_ray.config import TrainSettings


@dataclass(frozen=True)
class Phase:
    """Some epochs with the same layers trained: `head`, `finetune`, or `scratch` (all of them)."""

    name: str
    epochs: int
    learning_rate: float


def phases_of(settings: TrainSettings) -> list[Phase]:
    """The phases a run goes through, in order; those without epochs left out."""
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
    """A learning rate by step: linear from `start` to `peak`, then along a cosine to 0.

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
    """The learning rate of a phase."""
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
    """How far a run has come.

    Args:
        epoch: Epochs done, over all phases.
        phase: Index of the current phase; the number of phases when all are done.
        phase_epoch: Epochs done of the current phase.
        best_loss: Lowest validation loss of any epoch.
        stale_epochs: Epochs of this phase since that, or since it began.
    """

    epoch: int = 0
    phase: int = 0
    phase_epoch: int = 0
    best_loss: float = inf
    stale_epochs: int = 0

    def after(self, val_loss: float, num_epochs: int, patience: int) -> "Position":
        """The position after one more epoch of a phase of at most `num_epochs`."""
        better = val_loss < self.best_loss
        best_loss = val_loss if better else self.best_loss
        stale_epochs = 0 if better else self.stale_epochs + 1
        epoch = self.epoch + 1
        if self.phase_epoch + 1 == num_epochs or stale_epochs >= patience:
            return Position(epoch, self.phase + 1, 0, best_loss, 0)
        return Position(epoch, self.phase, self.phase_epoch + 1, best_loss, stale_epochs)
