"""Choose the champion among a model's versions: by rule, by force, or by rolling back.

Champion and challenger are compared by `judging`. Tags of the version record the decision, its
rule and its figures; tags of the model record every change (`champion_history`).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from mask_ray import tracking
from mask_ray.config import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    DataSettings,
    MaskRayError,
    PromotionRule,
)
from mask_ray.config.promote import PromoteSettings
from mask_ray.data import sources
from mask_ray.evaluation.champion_history import ChampionHistory, Entry, Event, who
from mask_ray.evaluation.comparison import Figures
from mask_ray.evaluation.grounds import HeldOutImages, load_held_out
from mask_ray.evaluation.judging import Decision, Judge, remember_reference
from mask_ray.models.predictor import Predictor
from mask_ray.progress import say

# Prefix of a version's tags.
_PREFIX = "promotion."


class PromotionError(MaskRayError):
    """The champion cannot be changed as requested; the message says why."""


def promote_if_better(
    name: str, version: str, images: HeldOutImages, rule: PromotionRule
) -> Decision:
    """Make a version the champion if the rule says so, and tag it with the decision.

    Args:
        name: Name of the registered model.
        version: Number of the version.
        images: Images to compare on, besides the champion's own.
        rule: What the version must show.

    Raises:
        tracking.ModelNotFoundError: there is no such version.
        MaskRayError: the version is not a classifier, or the registry does not answer.
    """
    model = tracking.RegisteredModel(name)
    history = ChampionHistory(model)
    if rule.reference_data is not None:
        remember_reference(model, rule.reference_data)
    judge = Judge(model, images)
    while True:
        champion = tracking.aliases(name).get(CHAMPION)
        known = {entry.key for entry in history.entries()}
        if champion == version:
            decision = _stored_decision(model, version)
            break
        # If the champion's version was deleted, the last one that still exists defends its place.
        others = [each for each in history.champions(champion) if each != version]
        decision = judge.compare(version, others[-1] if others else None, rule)
        # Another training run may have changed the champion meanwhile.
        if tracking.aliases(name).get(CHAMPION) == champion:
            model.tag_version(version, _tags(decision, images.digest, rule))
            break
    if decision.promoted:
        own = _make_champion(model, version)
        settled = _settle(judge, own, known, decision, rule)
        if settled is not decision:
            model.tag_version(version, _tags(settled, images.digest, rule))
            decision = settled
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
    if settings.reference_data is not None:
        # Once it is stored with the model, all later comparisons need it.
        sources.check(settings.reference_data)
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
    _make_champion(model, version, event="forced")
    _say(name, decision)
    return decision


def roll_back(name: str) -> Decision:
    """Make the previous champion the champion again; called again, go further back.

    If the champion's version was deleted, the last champion that still exists takes its place.

    Raises:
        PromotionError: there is no champion, or no previous one.
    """
    model = tracking.RegisteredModel(name)
    history = ChampionHistory(model)
    current = tracking.aliases(name).get(CHAMPION)
    champions = history.champions(current)
    if not champions:
        raise PromotionError(f"models:/{name} has no champion")
    if current is None:
        reason = "rollback, since the champion's version is gone"
    elif len(champions) < 2:
        raise PromotionError(
            f"version {current} of {name} is the first champion; there is no previous one"
        )
    else:
        champions, reason = champions[:-1], f"rollback of version {current}"
    tracking.forget_refusal(name, champions[-1])
    # The history first, not the alias as in a promotion: if this process dies here, the champion is
    # unchanged.
    history.append("rolled back", champions[-1], current)
    _point_aliases(model, champions)
    decision = Decision(champions[-1], promoted=True, reason=reason)
    if current is not None:
        model.tag_version(current, {f"{_PREFIX}rolled_back": _now()})
    _say(name, decision)
    return decision


def _say(name: str, decision: Decision) -> None:
    role = "champion" if decision.promoted else "challenger, not champion"
    say(f"version {decision.version} of {name} is {role}: {decision.reason}")


def _check_exists(model: tracking.RegisteredModel, version: str) -> None:
    if not model.has_version(version):
        raise PromotionError(f"version must be one of {model.name}'s; got {version}")


def _tags(
    decision: Decision, data_digest: str | None = None, rule: PromotionRule | None = None
) -> dict[str, str]:
    rules = None if rule is None else rule.model_dump(include=set(PromotionRule.model_fields))
    figures = asdict(decision)
    values = {
        "decision": "promoted" if decision.promoted else "not promoted",
        "reason": decision.reason,
        "rule": json.dumps(rules),
        "challenger": json.dumps(figures["challenger"]),
        "champion": json.dumps(figures["champion"]),
        "grounds": json.dumps(figures["grounds"]),
        "data_digest": data_digest or "",
        "time": _now(),
        "by": json.dumps(who()),
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


def _make_champion(
    model: tracking.RegisteredModel, version: str, event: Event = "promoted"
) -> Entry:
    """Move the aliases, and return the last change of the champion, which names the version.

    Calling it again completes a call that was interrupted.
    """
    history = ChampionHistory(model)
    before = tracking.aliases(model.name)
    current = before.get(CHAMPION)
    # Before the alias: a service may look at once.
    tracking.forget_refusal(model.name, version)
    # The alias first: if this process dies here, the history is still whole, and this version
    # counts as moved by hand.
    model.set_alias(CHAMPION, version)
    entries = history.entries()
    if not entries or entries[-1].version != version:
        entries.append(history.append(event, version, None if current == version else current))
    _point_aliases(model, history.champions(version))
    if before.get(CHALLENGER) == version:
        model.set_alias(CHALLENGER, None)
    return entries[-1]


def _point_aliases(model: tracking.RegisteredModel, champions: list[str]) -> None:
    """Set the aliases of the last champion and the one before."""
    model.set_alias(CHAMPION, champions[-1])
    model.set_alias(PREVIOUS, champions[-2] if len(champions) > 1 else None)


def _settle(
    judge: Judge, own: Entry, known: set[str], decision: Decision, rule: PromotionRule
) -> Decision:
    """Judge again if another version was made champion meanwhile; the better one keeps the alias.

    Both processes may do this. The later entry of the history is the challenger in both, so both
    come to the same end.

    Args:
        judge: Compares versions.
        own: The entry that made the version champion.
        known: Keys of the entries that the comparison took into account.
        decision: The decision so far, which promoted the version.
        rule: What the later one must show.
    """
    history = ChampionHistory(judge.model)
    while decision.promoted:
        entries = history.entries()
        rivals = [
            entry
            for entry in entries
            if entry.key not in known and entry.version != own.version and entry.event != "settled"
        ]
        existing = judge.model.versions() if rivals else set()
        rivals = [rival for rival in rivals if rival.version in existing]
        if not rivals:
            break
        known = known | {entry.key for entry in entries}
        decision = _settle_with(judge, own, rivals[-1], decision, rule)
    return decision


def _settle_with(
    judge: Judge, own: Entry, rival: Entry, decision: Decision, rule: PromotionRule
) -> Decision:
    first, second = sorted((own, rival), key=lambda entry: entry.key)
    if second.event == "promoted":
        judged = _judge_again(judge, second.version, first.version, rule)
    else:
        judged = Decision(second.version, True, f"version {second.version} was {second.event}")
    winner = second.version if judged.promoted else first.version
    _let_win(judge.model, winner, (own.version, rival.version))
    meanwhile = f"version {rival.version} was made champion meanwhile: {judged.reason}"
    if winner == own.version:
        return replace(decision, reason=f"{decision.reason}; {meanwhile}")
    return Decision(own.version, False, meanwhile, decision.challenger, decision.champion)


def _judge_again(judge: Judge, version: str, champion: str, rule: PromotionRule) -> Decision:
    """Compare two versions on the test splits of both; what cannot be compared is not promoted."""
    try:
        return judge.compare(version, champion, rule, is_mutual=True)
    except MaskRayError as error:
        return Decision(version, False, f"version {version} cannot be compared: {error}")


def _let_win(model: tracking.RegisteredModel, winner: str, pair: tuple[str, str]) -> None:
    """Give the winner the alias. The first of the pair is the version of this process."""
    own, _ = pair
    history = ChampionHistory(model)
    champions = history.champions(None)
    # A third version that was made champion meanwhile keeps its place: `_settle` sees it next.
    if champions and champions[-1] in pair:
        if champions[-1] != winner:
            history.append("settled", winner, champions[-1])
        _point_aliases(model, history.champions(winner))
    if winner != own and CHALLENGER not in tracking.aliases(model.name):
        model.set_alias(CHALLENGER, own)
