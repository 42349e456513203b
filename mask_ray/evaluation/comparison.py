"""Compare two versions of a model on the same images, and decide which is better.

The images are grouped into grounds: the given images, the test splits of versions, and a reference
set. The challenger must be better on all of them together, and on no ground much worse.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ray.data import Dataset

from mask_ray import data
from mask_ray.config import PromotionRule
from mask_ray.evaluation.grounds import GroundError
from mask_ray.evaluation.metrics import Predictions, compute_metrics, predict
from mask_ray.models.predictor import Predictor, Probabilities

# Equal figures may differ by a rounding error, which must not count as better or worse.
_ROUNDING = 1e-9

# Digest and label of an image.
Key = tuple[str, int]


class NotFiniteError(GroundError):
    """A model's answers are not numbers."""


class ClassesError(GroundError):
    """A model has other classes than the images."""


@dataclass(frozen=True)
class Figures:
    """Metrics of a version on some images; `recall` of the classes that have images there."""

    version: str
    num_images: int
    accuracy: float
    balanced_accuracy: float
    log_loss: float
    recall: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """Figures of challenger and champion on the same images."""

    challenger: Figures
    champion: Figures


@dataclass(frozen=True)
class Part:
    """Images that are read together.

    Args:
        at_size: Given an image size S, returns rows `image`, `label`, `digest` and perhaps `path`
            and `error`.
        about: What the images are, for errors.
    """

    at_size: Callable[[int], Dataset]
    about: str


@dataclass(frozen=True)
class Scored:
    """A version's predictions, with the key of each image."""

    keys: list[Key]
    predictions: Predictions

    def select(self, wanted: NDArray[np.bool_]) -> "Scored":
        """Return the images where `wanted` is true."""
        predictions = self.predictions
        return Scored(
            [key for key, is_wanted in zip(self.keys, wanted, strict=True) if is_wanted],
            Predictions(
                predictions.labels[wanted],
                predictions.probabilities[wanted],
                predictions.class_names,
            ),
        )

    def within(self, keys: AbstractSet[Key]) -> "Scored":
        """Return the images that have one of these keys."""
        return self.select(np.array([key in keys for key in self.keys], bool))

    def without(self, digests: AbstractSet[str]) -> "Scored":
        """Return the images whose digest is not among these."""
        return self.select(np.array([key[0] not in digests for key in self.keys], bool))


def score(predictor: Predictor, part: Part) -> Scored:
    """Predict all images of a part.

    Raises:
        GroundError: an image cannot be read.
        NotFiniteError: an answer is not a number.
    """
    keys: list[Key] = []

    def collect(batch: data.Batch, probabilities: Probabilities) -> None:
        if "error" in batch and (bad := np.flatnonzero(batch["error"] != "")).size:
            path, reason = batch["path"][bad[0]], batch["error"][bad[0]]
            raise GroundError(f"{part.about} cannot be read: {path} {reason}")
        if not np.isfinite(probabilities).all():
            raise NotFiniteError("its answers must be finite; got NaN or infinity")
        keys.extend(zip(map(str, batch["digest"]), map(int, batch["label"]), strict=True))

    predictions = predict(part.at_size(predictor.image_size), predictor, collect)
    return Scored(keys, predictions)


def join(scored: Sequence[Scored]) -> Scored:
    """Join the images of several parts. An image of several parts counts in the first alone."""
    known: set[Key] = set()
    kept: list[Scored] = []
    for each in scored:
        kept.append(each.select(np.array([key not in known for key in each.keys], bool)))
        known.update(each.keys)
    return Scored(
        [key for each in kept for key in each.keys],
        Predictions(
            np.concatenate([each.predictions.labels for each in kept]),
            np.concatenate([each.predictions.probabilities for each in kept]),
            kept[0].predictions.class_names,
        ),
    )


def figures(version: str, scored: Scored) -> Figures:
    """Compute the metrics of a version on at least one image."""
    predictions = scored.predictions
    metrics = compute_metrics(predictions)
    present = {predictions.class_names[label] for label in predictions.labels}
    recall = {name: value for name, value in metrics["recall"].items() if name in present}
    return Figures(
        version=version,
        num_images=metrics["num_images"],
        accuracy=metrics["accuracy"],
        balanced_accuracy=float(np.mean(list(recall.values()))),
        log_loss=metrics["log_loss"],
        recall=recall,
    )


def decide(
    rule: PromotionRule,
    challenger: Figures,
    champion: Figures | None,
    grounds: Mapping[str, Pair] | None = None,
) -> tuple[bool, str]:
    """Return whether the challenger should become the champion, and why.

    Args:
        rule: What it must show.
        challenger: Its figures on all images.
        champion: The champion's figures on the same images; None if there is none.
        grounds: Figures of both on each ground alone, by the ground's name.
    """
    if reason := _reason_of_recall(rule, challenger):
        return False, reason
    if not math.isfinite(challenger.log_loss):
        return False, f"its log_loss must be finite; got {challenger.log_loss}"
    if champion is None:
        return True, "there was no champion"
    beats = _gain(rule, challenger, champion) > rule.promotion_margin + _ROUNDING
    needed = f", by more than {rule.promotion_margin:g}" if rule.promotion_margin else ""
    reason = f"{_compared(rule, challenger, champion)} {'is' if beats else 'is not'} better{needed}"
    for name, pair in (grounds or {}).items() if beats else ():
        if _gain(rule, pair.challenger, pair.champion) < -rule.promotion_tolerance - _ROUNDING:
            figures = _compared(rule, pair.challenger, pair.champion)
            return False, f"{figures} is worse on {name}, by more than {rule.promotion_tolerance:g}"
    return beats, reason


def _reason_of_recall(rule: PromotionRule, challenger: Figures) -> str | None:
    """Return why the worst recall is not enough, or None if it is."""
    worst = min(challenger.recall, key=lambda name: challenger.recall[name])
    recall = challenger.recall[worst]
    figure = f"its recall of {worst} is {recall:.4f}"
    if rule.min_recall is not None:
        enough = recall >= rule.min_recall
        return None if enough else f"{figure}, below --min-recall ({rule.min_recall:g})"
    chance = 1 / len(challenger.recall)
    if recall > chance + _ROUNDING:
        return None
    return f"{figure}, no more than chance ({chance:g}); --min-recall can set another limit"


def _gain(rule: PromotionRule, challenger: Figures, champion: Figures) -> float:
    own = float(getattr(challenger, rule.promotion_metric))
    other = float(getattr(champion, rule.promotion_metric))
    return other - own if rule.promotion_metric == "log_loss" else own - other


def _compared(rule: PromotionRule, challenger: Figures, champion: Figures) -> str:
    metric = rule.promotion_metric
    own, other = getattr(challenger, metric), getattr(champion, metric)
    return f"{metric} {own:.4f} against {other:.4f} of version {champion.version}"
