"""Choose the champion among a model's versions: by rule, by force, or by rolling back.

Champion and challenger are both evaluated now, from their files in the registry, on the same
images. Tags of the version record the decision, its rule and its figures.
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
    PromotionRule,
)
from mask_ray.config.promote import PromoteSettings
from mask_ray.models.predictor import Predictor
from mask_ray.progress import say

# Tag of a registered model: the versions that were champion, in order, the current one last.
_CHAMPIONS_TAG = "champions"
# Prefix of a version's tags.
_PREFIX = "promotion."


class PromotionError(MaskRayError):
    """The champion cannot be changed as requested; the message says why."""


@dataclass(frozen=True)
class HeldOutImages:
    """The images that versions are compared on.

    Args:
        at_size: Given an image size S, returns rows `image` (uint8, (S, S, 3)) and `label`.
        class_names: Class names in the order of labels.
        digest: Digest of the whole data set.
    """

    at_size: Callable[[int], Dataset]
    class_names: list[str]
    digest: str


@dataclass(frozen=True)
class Figures:
    """Metrics of a version on the test split; `recall` of the classes that have images in it."""

    version: str
    num_images: int
    accuracy: float
    balanced_accuracy: float
    log_loss: float
    recall: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """Whether a version became the champion.

    Args:
        version: Number of the version.
        promoted: Whether it is the champion now.
        reason: Why, or why not.
        challenger: Figures of the version; None if nothing was compared.
        champion: Figures of the previous champion; None if there was none to compare with.
    """

    version: str
    promoted: bool
    reason: str
    challenger: Figures | None = None
    champion: Figures | None = None


def load_held_out(
    settings: DataSettings, image_size: int, images: data.ImageData | None = None
) -> HeldOutImages:
    """Load the test split of a data set; other image sizes are read again when needed.

    Args:
        settings: Source of the images.
        image_size: First size that is needed, in pixels.
        images: The data set at that size, if it was read already.

    Raises:
        data.DataError: the data cannot be used.
    """
    loaded = {image_size: images or data.load(settings, image_size, needed=())}

    def at_size(size: int) -> Dataset:
        if size not in loaded:
            loaded[size] = data.load(settings, size, needed=())
        return loaded[size].split("test")

    first = loaded[image_size]
    return HeldOutImages(at_size, first.class_names, first.summary.digest)


def promote_if_better(
    name: str, version: str, images: HeldOutImages, rule: PromotionRule
) -> Decision:
    """Make a version the champion if the rule says so, and tag it with the decision.

    Raises:
        tracking.ModelNotFoundError: there is no such version.
        MaskRayError: the version is not a classifier, or the registry does not answer.
    """
    model = tracking.RegisteredModel(name)
    while True:
        champion = tracking.aliases(name).get(CHAMPION)
        if champion == version:
            decision = _stored_decision(model, version)
            break
        decision = _compare(name, version, champion, images, rule)
        # Another training run may have changed the champion meanwhile.
        if tracking.aliases(name).get(CHAMPION) == champion:
            model.tag_version(version, _tags(decision, images.digest, rule))
            break
    if decision.promoted:
        _make_champion(model, version)
    _say(name, decision)
    return decision


def promote_or_roll_back(
    settings: PromoteSettings, stored_settings: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Promote a version, or roll back to the previous champion. Ray must be running.

    Args:
        settings: What to do.
        stored_settings: Returns the settings of a training run, given its id.

    Returns:
        The decision as a dict.
    """
    name = settings.register_as
    if settings.rollback:
        return asdict(roll_back(name))
    assert settings.version is not None, "checked by the settings"
    if settings.force:
        return asdict(force_promotion(name, settings.version))
    model = tracking.RegisteredModel(name)
    _check_exists(model, settings.version)
    source = _data_settings(stored_settings(model.run_id_of(settings.version)), settings.data)
    path = tracking.resolve_model(f"models:/{name}/{settings.version}").path
    images = load_held_out(source, Predictor(path).image_size)
    return asdict(promote_if_better(name, settings.version, images, settings))


def _data_settings(stored: dict[str, Any], source: str | None) -> DataSettings:
    """Return settings that split like the version's run: it did not train on its test split."""
    own = {key: stored[key] for key in DataSettings.model_fields if key in stored}
    return DataSettings(**own | ({} if source is None else {"data": source, "test_data": None}))


def force_promotion(name: str, version: str) -> Decision:
    """Make a version the champion without a comparison.

    Raises:
        PromotionError: there is no such version.
    """
    model = tracking.RegisteredModel(name)
    _check_exists(model, version)
    decision = Decision(version, promoted=True, reason="by force, without a comparison")
    model.tag_version(version, _tags(decision))
    _make_champion(model, version)
    _say(name, decision)
    return decision


def roll_back(name: str) -> Decision:
    """Make the previous champion the champion again; called again, go further back.

    Raises:
        PromotionError: there is no champion, or no previous one.
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
        raise PromotionError(
            f"version {current} of {name} is the first champion; there is no previous one"
        )
    previous = champions[-2]
    # The history first: if this process dies here, the champion is unchanged.
    model.set_tag(_CHAMPIONS_TAG, json.dumps(champions[:-1]))
    model.set_alias(CHAMPION, previous)
    model.set_alias(PREVIOUS, champions[-3] if len(champions) > 2 else None)
    decision = Decision(previous, promoted=True, reason=f"rollback of version {current}")
    model.tag_version(current, {f"{_PREFIX}rolled_back": _now()})
    _say(name, decision)
    return decision


def _say(name: str, decision: Decision) -> None:
    role = "champion" if decision.promoted else "challenger, not champion"
    say(f"version {decision.version} of {name} is {role}: {decision.reason}")


def _check_exists(model: tracking.RegisteredModel, version: str) -> None:
    if not model.has_version(version):
        raise PromotionError(f"version must be one of {model.name}'s; got {version}")


def _compare(
    name: str, version: str, champion: str | None, images: HeldOutImages, rule: PromotionRule
) -> Decision:
    own = _figures(name, version, images)
    if champion is None:
        return Decision(version, *decide(rule, own, None), own)
    try:
        other = _figures(name, champion, images)
    except MaskRayError as error:
        reason = f"the champion, version {champion}, cannot be compared: {error}"
        return Decision(version, promoted=False, reason=reason, challenger=own)
    return Decision(version, *decide(rule, own, other), own, other)


def _figures(name: str, version: str, images: HeldOutImages) -> Figures:
    resolved = tracking.resolve_model(f"models:/{name}/{version}")
    predictor = Predictor(resolved.path, num_threads=os.cpu_count() or 1)
    if list(predictor.class_names) != images.class_names:
        raise PromotionError(
            f"its classes are {', '.join(predictor.class_names)}, those of the images "
            f"{', '.join(images.class_names)}"
        )
    predictions = evaluation.predict(images.at_size(predictor.image_size), predictor)
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
    """Return whether the challenger should become the champion, and why."""
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
    # Equal figures may differ by a rounding error, which must not count as better.
    beats = gain > rule.promotion_margin + 1e-9
    figures = f"{metric} {own:.4f} against {other:.4f} of version {champion.version}"
    needed = f", by more than {rule.promotion_margin:g}" if rule.promotion_margin else ""
    return beats, f"{figures} {'is' if beats else 'is not'} better{needed}"


def _tags(
    decision: Decision, data_digest: str | None = None, rule: PromotionRule | None = None
) -> dict[str, str]:
    rules = None if rule is None else rule.model_dump(include=set(PromotionRule.model_fields))
    values = {
        "decision": "promoted" if decision.promoted else "not promoted",
        "reason": decision.reason,
        "rule": json.dumps(rules),
        "challenger": json.dumps(decision.challenger and asdict(decision.challenger)),
        "champion": json.dumps(decision.champion and asdict(decision.champion)),
        "data_digest": data_digest or "",
        "time": _now(),
    }
    return {f"{_PREFIX}{key}": value for key, value in values.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stored_decision(model: tracking.RegisteredModel, version: str) -> Decision:
    """Read the decision that made a version the champion from its tags."""
    tags = model.version_tags(version)

    def figures(key: str) -> Figures | None:
        stored: dict[str, Any] | None = json.loads(tags.get(f"{_PREFIX}{key}", "null"))
        return None if stored is None else Figures(**stored)

    reason = tags.get(f"{_PREFIX}reason", "it was already the champion")
    return Decision(version, True, reason, figures("challenger"), figures("champion"))


def _make_champion(model: tracking.RegisteredModel, version: str) -> None:
    """Move the aliases. Calling it again completes a call that was interrupted."""
    aliases = tracking.aliases(model.name)
    champions = _champions(model, aliases.get(CHAMPION))
    if champions[-1:] != [version]:
        # The alias first: if this process dies here, `_champions` still finds the whole history.
        model.set_alias(CHAMPION, version)
        champions.append(version)
    model.set_tag(_CHAMPIONS_TAG, json.dumps(champions))
    if len(champions) > 1:
        model.set_alias(PREVIOUS, champions[-2])
    if aliases.get(CHALLENGER) == version:
        model.set_alias(CHALLENGER, None)


def _champions(model: tracking.RegisteredModel, current: str | None) -> list[str]:
    """Return all champions in order, the current one last, even if its alias was moved by hand."""
    champions: list[str] = json.loads(model.tags().get(_CHAMPIONS_TAG, "[]"))
    if current is not None and champions[-1:] != [current]:
        champions.append(current)
    return champions
