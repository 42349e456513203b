"""Which version of a model is the champion: a new one takes its place by rule, and can be undone.

Champion and challenger are both scored now, by their files in the registry, on the same images.
What was decided, by which rule and figures, is kept as tags of the version.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from ray.data import Dataset

from mask_ray import data, evaluation, tracking
from mask_ray.config import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    DataSettings,
    MaskRayError,
    PromoteSettings,
    PromotionRule,
)
from mask_ray.models.predictor import Predictor
from mask_ray.progress import say

# Of a registered model: every champion in its turn, the present one last.
_CHAMPIONS_TAG = "champions"
_TAG = "promotion."


class PromotionError(MaskRayError):
    """The champion cannot be changed as asked; the message says why."""


@dataclass(frozen=True)
class HeldOut:
    """The images that versions are compared on.

    Args:
        at: Rows `image` (uint8, (S, S, 3)) and `label` at a size S.
        class_names: In the order of labels.
        digest: Of the whole data set.
    """

    at: Callable[[int], Dataset]
    class_names: list[str]
    digest: str


@dataclass(frozen=True)
class Figures:
    """How a version does on the test split; `recall` of the classes that have images in it."""

    version: str
    num_images: int
    accuracy: float
    balanced_accuracy: float
    log_loss: float
    recall: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """Whether a version is the champion now.

    Args:
        version: The version.
        promoted: Whether it is.
        reason: Why, or why not.
        challenger: Its figures; None where nothing was compared.
        champion: Those of the champion until then; None where there was none to compare with.
    """

    version: str
    promoted: bool
    reason: str
    challenger: Figures | None = None
    champion: Figures | None = None


def held_out(
    settings: DataSettings, image_size: int, images: data.ImageData | None = None
) -> HeldOut:
    """The test split of a data set, read again for each other image size.

    Args:
        settings: Where the images come from.
        image_size: The first that is needed, in pixels.
        images: The data set at that size, if it is read already.

    Raises:
        data.DataError: the data cannot be used.
    """
    known = {image_size: images or data.load(settings, image_size, needed=())}

    def at(size: int) -> Dataset:
        if size not in known:
            known[size] = data.load(settings, size, needed=())
        return known[size].split("test")

    return HeldOut(at, known[image_size].class_names, known[image_size].summary.digest)


def run(name: str, version: str, images: HeldOut, rule: PromotionRule) -> Decision:
    """Make a version the champion if the rule says so, and keep on it what was decided.

    Raises:
        tracking.ModelNotFoundError: there is no such version.
        MaskRayError: it is no classifier, or the registry does not answer.
    """
    model = tracking.RegisteredModel(name)
    while True:
        champion = tracking.aliases(name).get(CHAMPION)
        if champion == version:
            decision = _recorded(model, version)
            break
        decision = _compare(name, version, champion, images, rule)
        # Another training run may have ended meanwhile.
        if tracking.aliases(name).get(CHAMPION) == champion:
            model.tag_version(version, _tags(decision, images.digest, rule))
            break
    if decision.promoted:
        _crown(model, version)
    say(describe(name, decision))
    return decision


def by_hand(settings: PromoteSettings, stored: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Promote a version, or go back to the champion before. Ray must be running.

    Args:
        settings: What to do.
        stored: Gives the settings of the run that made the version, by its id.
    """
    name = settings.register_as
    if settings.rollback:
        return summary(rollback(name))
    assert settings.version is not None, "checked by the settings"
    if settings.force:
        return summary(force(name, settings.version))
    model = tracking.RegisteredModel(name)
    _check_exists(model, settings.version)
    source = _data_of(stored(model.run_of(settings.version)), settings.data)
    path = tracking.resolve_model(f"models:/{name}/{settings.version}").path
    images = held_out(source, Predictor(path).image_size)
    return summary(run(name, settings.version, images, settings))


def summary(decision: Decision) -> dict[str, Any]:
    """What a job tells of it."""
    return asdict(decision)


def _data_of(stored: dict[str, Any], source: str | None) -> DataSettings:
    """Split as the version's own run did, so that it has not trained on what it is tested on."""
    own = {key: stored[key] for key in DataSettings.model_fields if key in stored}
    return DataSettings(**own | ({} if source is None else {"data": source, "test_data": None}))


def force(name: str, version: str) -> Decision:
    """Make a version the champion whatever its figures.

    Raises:
        PromotionError: there is no such version.
    """
    model = tracking.RegisteredModel(name)
    _check_exists(model, version)
    decision = Decision(version, promoted=True, reason="by force, without a comparison")
    model.tag_version(version, _tags(decision))
    _crown(model, version)
    say(describe(name, decision))
    return decision


def rollback(name: str) -> Decision:
    """Make the champion before the present one champion again; once more, the one before that.

    Raises:
        PromotionError: there was none before.
    """
    if (current := tracking.aliases(name).get(CHAMPION)) is None:
        raise PromotionError(f"models:/{name} has no champion")
    model = tracking.RegisteredModel(name)
    champions = [
        version
        for version in _champions(model, current)
        if version == current or model.has_version(version)
    ]
    if len(champions) < 2:
        raise PromotionError(f"version {current} of {name} is the first champion; none was before")
    before = champions[-2]
    # The history first: cut off here, nothing has happened.
    model.set_tag(_CHAMPIONS_TAG, json.dumps(champions[:-1]))
    model.move(CHAMPION, before)
    model.move(PREVIOUS, champions[-3] if len(champions) > 2 else None)
    decision = Decision(before, promoted=True, reason=f"rollback of version {current}")
    model.tag_version(current, {f"{_TAG}rolled_back": _now()})
    say(describe(name, decision))
    return decision


def describe(name: str, decision: Decision) -> str:
    """A line for whoever reads the log."""
    kind = "champion" if decision.promoted else "challenger, not champion"
    return f"version {decision.version} of {name} is {kind}: {decision.reason}"


def _check_exists(model: tracking.RegisteredModel, version: str) -> None:
    if not model.has_version(version):
        raise PromotionError(f"version must be one of {model.name}'s; got {version}")


def _compare(
    name: str, version: str, champion: str | None, images: HeldOut, rule: PromotionRule
) -> Decision:
    own = _figures(name, version, images)
    if champion is None:
        return Decision(version, *decide(rule, own, None), own)
    try:
        other = _figures(name, champion, images)
    except MaskRayError as error:
        reason = f"the champion, version {champion}, cannot be compared with: {error}"
        return Decision(version, promoted=False, reason=reason, challenger=own)
    return Decision(version, *decide(rule, own, other), own, other)


def _figures(name: str, version: str, images: HeldOut) -> Figures:
    resolved = tracking.resolve_model(f"models:/{name}/{version}")
    predictor = Predictor(resolved.path, num_threads=os.cpu_count() or 1)
    if list(predictor.class_names) != images.class_names:
        raise PromotionError(
            f"its classes are {', '.join(predictor.class_names)}, those of the images "
            f"{', '.join(images.class_names)}"
        )
    predictions = evaluation.predict(images.at(predictor.image_size), predictor)
    metrics = evaluation.compute_metrics(predictions)
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


def decide(rule: PromotionRule, challenger: Figures, champion: Figures | None) -> tuple[bool, str]:
    """Whether the challenger is to be the champion, and why."""
    worst = min(challenger.recall, key=lambda name: challenger.recall[name])
    if challenger.recall[worst] < rule.min_recall:
        return False, (
            f"its recall of {worst} is {challenger.recall[worst]:.4f}, "
            f"below min_recall ({rule.min_recall:g})"
        )
    if champion is None:
        return True, "there was no champion"
    metric = rule.promotion_metric
    own, other = getattr(challenger, metric), getattr(champion, metric)
    gain = other - own if metric == "log_loss" else own - other
    # Figures are fractions of few images: what is equal must not be better by a rounding.
    beats = gain > rule.promotion_margin + 1e-9
    figures = f"{metric} {own:.4f} against {other:.4f} of version {champion.version}"
    needed = f", by more than {rule.promotion_margin:g}" if rule.promotion_margin else ""
    return beats, f"{figures} {'is' if beats else 'is not'} better{needed}"


def _tags(
    decision: Decision, data_digest: str | None = None, rule: PromotionRule | None = None
) -> dict[str, str]:
    rules = None if rule is None else rule.model_dump(include=set(PromotionRule.model_fields))
    told = {
        "decision": "promoted" if decision.promoted else "not promoted",
        "reason": decision.reason,
        "rule": json.dumps(rules),
        "challenger": json.dumps(decision.challenger and asdict(decision.challenger)),
        "champion": json.dumps(decision.champion and asdict(decision.champion)),
        "data_digest": data_digest or "",
        "time": _now(),
    }
    return {f"{_TAG}{key}": value for key, value in told.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _recorded(model: tracking.RegisteredModel, version: str) -> Decision:
    """Of a version that is the champion already: what was decided then."""
    tags = model.version_tags(version)

    def figures(key: str) -> Figures | None:
        stored: dict[str, Any] | None = json.loads(tags.get(f"{_TAG}{key}", "null"))
        return None if stored is None else Figures(**stored)

    reason = tags.get(f"{_TAG}reason", "it was already")
    return Decision(version, True, reason, figures("challenger"), figures("champion"))


def _crown(model: tracking.RegisteredModel, version: str) -> None:
    """Move the aliases; what was cut off half-way is completed by doing it again."""
    aliases = tracking.aliases(model.name)
    champions = _champions(model, aliases.get(CHAMPION))
    if champions[-1:] != [version]:
        # The alias first: cut off here, `_champions` still finds the whole history.
        model.move(CHAMPION, version)
        champions.append(version)
    model.set_tag(_CHAMPIONS_TAG, json.dumps(champions))
    if len(champions) > 1:
        model.move(PREVIOUS, champions[-2])
    if aliases.get(CHALLENGER) == version:
        model.move(CHALLENGER, None)


def _champions(model: tracking.RegisteredModel, current: str | None) -> list[str]:
    """Every champion in its turn, the present one last, also where its alias was moved by hand."""
    champions: list[str] = json.loads(model.tags().get(_CHAMPIONS_TAG, "[]"))
    if current is not None and champions[-1:] != [current]:
        champions.append(current)
    return champions
