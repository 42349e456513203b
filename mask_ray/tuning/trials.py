"""The trials of a search: what they try, what came of them, and how to train with the best."""

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
    """The search cannot be made, or led to nothing; the message says why."""


def draw(settings: TuneSettings) -> list[TrainSettings]:
    """The settings of each trial: those without a search, then drawn ones.

    The draws depend on the seed and on what is searched. No two trials are alike, so there may be
    fewer than `num_trials` where only few choices are searched.
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
    """What came of a trial; its best epoch is that of the lowest validation loss.

    Args:
        number: Of the trial, from 0.
        run_id: Its MLflow run.
        status: `finished`, `stopped early` or `failed`.
        num_epochs: Epochs that it came to.
        val_loss: Of the best epoch; NaN without one.
        val_accuracy: Of the same epoch.
        chosen: The settings that were searched.
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
        """Sorts the best first, and failures last."""
        return self.status == "failed", math.isnan(self.val_loss), self.val_loss


def chosen(trial: TrainSettings, searched: Sequence[str]) -> dict[str, Any]:
    """What was searched of a trial's settings."""
    return {name: getattr(trial, name) for name in searched}


def outcomes(
    tracked: tracking.Run, drawn: Sequence[TrainSettings], searched: Sequence[str]
) -> list[Outcome]:
    """Of the trials that were begun, the best first.

    Args:
        tracked: The search's run.
        drawn: Settings of each trial, by its number.
        searched: Names of settings.
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
    """The first, if it is any good.

    Args:
        found: From `outcomes`.
        reasons: Why trials failed, a line each.

    Raises:
        TuningError: it is not.
    """
    first = found[0]
    if first.status == "failed" or math.isnan(first.val_loss):
        reason = f", lastly with: {reasons[-1]}" if reasons else " to come to a validation loss"
        raise TuningError(f"all {len(found)} trials failed{reason}")
    return first


def table(outcomes: Sequence[Outcome]) -> str:
    """Columns for people."""
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
    """A file for `jobs.train --config`, with all that has a value."""
    return str(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False))


def command(settings: TrainSettings) -> str:
    """The command that trains with these settings, without those that it has by default."""
    words = ["python", "-m", "jobs.train"]
    for name, value in _given(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _given(settings: TrainSettings) -> dict[str, Any]:
    # Numbers of epochs have other defaults without weights.
    default = TrainSettings(data=settings.data, backbone_weights=settings.backbone_weights)
    usual = TrainSettings(data="synthetic")
    return {
        name: value
        for name, value in settings.model_dump().items()
        if name == "data"
        or value != getattr(usual if name == "backbone_weights" else default, name)
    }
