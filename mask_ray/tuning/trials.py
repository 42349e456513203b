"""Trials of a search: draw their settings, rank their outcomes, and print how to train the best."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from mask_ray import tracking
from mask_ray.config import SEARCH_CHOICES, SEARCH_RANGES, MaskRayError, TrainSettings, TuneSettings

_DRAWS_PER_TRIAL = 20


class TuningError(MaskRayError):
    """The search cannot run, or no trial succeeded; the message says why."""


def draw(settings: TuneSettings) -> list[TrainSettings]:
    """Return the settings of each trial: the given ones first, then drawn ones.

    The draws depend only on the seed and on which settings are searched. No two trials are equal,
    so there may be fewer than `num_trials` if the searched settings have few values.
    """
    fixed = settings.model_dump(include=set(TrainSettings.model_fields)) | {
        "resume": None,
        "from_run": None,
    }
    searched = settings.searched
    first: dict[str, Any] = {}
    if "finetune_learning_rate" in searched:
        tenth = settings.learning_rate / 10
        first["finetune_learning_rate"] = settings.finetune_learning_rate or tenth
    trials = {TrainSettings(**fixed | first): True}
    rng = np.random.default_rng(settings.seed)
    for _ in range(_DRAWS_PER_TRIAL * settings.num_trials):
        if len(trials) == settings.num_trials:
            break
        drawn = {name: _draw(name, settings, rng) for name in searched}
        trials[TrainSettings(**fixed | drawn)] = True
    return list(trials)


def _draw(name: str, settings: TuneSettings, rng: np.random.Generator) -> Any:
    if name in SEARCH_RANGES:
        low, high = SEARCH_RANGES[name]
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        return float(f"{value:.3g}")
    choices = SEARCH_CHOICES[name]
    if name == "batch_size":
        size, least = settings.batch_size, settings.num_workers
        choices = tuple(max(least, int(size * factor)) for factor in choices)
    return choices[rng.integers(len(choices))]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial; its best epoch is the one of the lowest validation loss.

    Args:
        number: Number of the trial, from 0.
        run_id: Its MLflow run.
        status: `finished`, `stopped early` or `failed`.
        num_epochs: Number of finished epochs.
        val_loss: Validation loss of the best epoch; NaN if there is none.
        val_accuracy: Validation accuracy of the same epoch.
        chosen: Values of the searched settings.
    """

    number: int
    run_id: str
    status: str
    num_epochs: int
    val_loss: float
    val_accuracy: float
    chosen: dict[str, Any]

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Sort key: the best first, failures last."""
        return self.status == "failed", math.isnan(self.val_loss), self.val_loss


def chosen(trial: TrainSettings, searched: Sequence[str]) -> dict[str, Any]:
    """Return the searched settings of a trial, by name."""
    return {name: getattr(trial, name) for name in searched}


def outcomes(
    tracked: tracking.Run, drawn: Sequence[TrainSettings], searched: Sequence[str]
) -> list[Outcome]:
    """Return the outcomes of all started trials, the best first.

    Args:
        tracked: MLflow run of the search.
        drawn: Settings of each trial, by its number.
        searched: Names of the searched settings.
    """
    found = []
    for run in tracked.nested():
        number = int(run.tags()["trial"])
        found.append(_outcome(number, run, chosen(drawn[number], searched)))
    return sorted(found, key=lambda outcome: outcome.rank)


def _outcome(number: int, run: tracking.Run, chosen: dict[str, Any]) -> Outcome:
    status = "stopped early" if run.tags().get("stopped_early") == "true" else "finished"
    losses = run.history("val_loss")
    finite = {step: loss for step, loss in losses.items() if not math.isnan(loss)}
    best = min(finite, key=lambda step: finite[step], default=-1)
    return Outcome(
        number=number,
        run_id=run.run_id,
        status=status if run.status() == "FINISHED" else "failed",
        num_epochs=len(losses),
        val_loss=finite.get(best, math.nan),
        val_accuracy=run.history("val_accuracy").get(best, math.nan),
        chosen=chosen,
    )


def best(found: Sequence[Outcome], reasons: Sequence[str]) -> Outcome:
    """Return the best outcome.

    Args:
        found: Outcomes from `outcomes`.
        reasons: Errors of failed trials, one line each.

    Raises:
        TuningError: no trial has a validation loss.
    """
    first = found[0]
    if first.status == "failed" or math.isnan(first.val_loss):
        reason = f"last error: {reasons[-1]}" if reasons else "none has a validation loss"
        raise TuningError(f"all {len(found)} trials failed; {reason}")
    return first


def table(outcomes: Sequence[Outcome]) -> str:
    """Format outcomes as aligned columns."""
    rows = [["trial", "val_loss", "val_accuracy", "epochs", "", *outcomes[0].chosen]]
    rows += [
        [
            str(outcome.number),
            f"{outcome.val_loss:.4f}",
            f"{outcome.val_accuracy:.4f}",
            str(outcome.num_epochs),
            outcome.status,
            *map(str, outcome.chosen.values()),
        ]
        for outcome in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def as_yaml(settings: TrainSettings) -> str:
    """Return a file for `jobs.train --config` with all settings that have a value."""
    return str(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False))


def command(settings: TrainSettings) -> str:
    """Return the command that trains with these settings; flags of default values are left out."""
    words = ["python", "-m", "jobs.train"]
    for name, value in _not_default(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _not_default(settings: TrainSettings) -> dict[str, Any]:
    # Without backbone weights the numbers of epochs have other defaults.
    default = TrainSettings(data=settings.data, backbone_weights=settings.backbone_weights)
    usual = TrainSettings(data="synthetic")
    return {
        name: value
        for name, value in settings.model_dump().items()
        if name == "data"
        or value != getattr(usual if name == "backbone_weights" else default, name)
    }
