"""Champions by rule, in a real registry: no Ray, images as arrays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mask_ray import tracking
from mask_ray.config import PromotionRule
from mask_ray.evaluation import promotion
from mask_ray.evaluation.champion_history import ChampionHistory, Entry
from mask_ray.evaluation.judging import Decision
from mask_ray.evaluation.promotion import PromotionError
from mask_ray.tracking import start_run
from tests.support.mlflow_models import NAME, register
from tests.support.onnx_files import write_classifier
from tests.support.promotion_images import ANY_RECALL, RULE, LabelledAs, Runs, disputed, tags


def history() -> list[Entry]:
    return ChampionHistory(tracking.RegisteredModel(NAME)).entries()


def test_the_first_version_is_champion_and_a_better_one_takes_its_place(
    files: dict[str, Path],
    labelled_as: LabelledAs,
) -> None:
    assert tracking.aliases(NAME) == {"challenger": "5"}
    MlflowClient().set_registered_model_alias(NAME, "challenger", "1")
    assert promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE).promoted
    assert tracking.aliases(NAME) == {"champion": "1"}

    decision = promotion.promote_if_better(NAME, "2", labelled_as(files["2"]), RULE)

    assert decision.promoted
    assert tracking.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert decision.challenger is not None and decision.champion is not None
    assert (decision.challenger.version, decision.challenger.accuracy) == ("2", 1.0)
    assert decision.champion.version == "1" and decision.champion.accuracy < 1
    told = tags("2")
    assert told["promotion.decision"] == "promoted"
    assert told["promotion.data_digest"] == "d1"
    assert json.loads(told["promotion.rule"]) == RULE.model_dump()
    assert json.loads(told["promotion.challenger"])["accuracy"] == 1.0
    assert json.loads(told["promotion.champion"])["accuracy"] == decision.champion.accuracy


def test_a_version_that_is_no_better_stays_the_challenger(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    MlflowClient().set_registered_model_alias(NAME, "challenger", "3")
    decision = promotion.promote_if_better(
        NAME, "3", labelled_as(files["1"], num_wrong=1), PromotionRule(min_recall=0)
    )
    assert not decision.promoted
    assert tracking.aliases(NAME) == {"champion": "1", "challenger": "3"}
    assert tags("3")["promotion.decision"] == "not promoted"
    assert "is not better" in tags("3")["promotion.reason"]
    assert json.loads(tags("3")["promotion.champion"])["accuracy"] == 0.975


def test_a_version_moved_to_by_hand_may_be_served_again(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    promotion.force_promotion(NAME, "2")
    tracking.keep_refusal(NAME, "1", "it was slow")
    tracking.keep_refusal(NAME, "2", "it was slow")

    promotion.force_promotion(NAME, "2")
    assert tracking.refusal(NAME, "2") is None and tracking.refusal(NAME, "1")
    promotion.roll_back(NAME)
    assert tracking.refusal(NAME, "1") is None


def test_a_champion_of_other_classes_gives_way_only_to_force(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    promotion.force_promotion(NAME, "4")
    decision = promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    assert not decision.promoted
    assert decision.reason == (
        f"the champion cannot be compared: version 4 of {NAME} has the classes cat, dog, and the "
        "images have with_mask, without_mask. Train under a name of its own with --register-as "
        "NAME, or replace the champion with `python -m jobs.promote 1 --force`"
    )
    assert promotion.force_promotion(NAME, "1").promoted
    assert tracking.aliases(NAME)["champion"] == "1"


def test_a_promotion_that_was_cut_off_is_completed_by_the_next(
    files: dict[str, Path], labelled_as: LabelledAs, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    set_tag = tracking.RegisteredModel.set_tag

    def cut_off(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.RegisteredModel, "set_tag", cut_off)
    with pytest.raises(KeyboardInterrupt):
        promotion.promote_if_better(NAME, "3", labelled_as(files["3"]), RULE)
    assert tracking.aliases(NAME)["champion"] == "3"
    monkeypatch.setattr(tracking.RegisteredModel, "set_tag", set_tag)

    again = promotion.promote_if_better(NAME, "3", labelled_as(files["1"]), RULE)

    assert again.promoted and again.champion is not None and again.champion.version == "1"
    assert tracking.aliases(NAME)["previous"] == "1"
    assert promotion.roll_back(NAME).version == "1"


def test_a_champion_that_changes_meanwhile_is_compared_with_too(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    images = labelled_as(files["3"])
    moved: list[Any] = []

    def at(size: int) -> Any:
        if not moved:
            moved.append(promotion.force_promotion(NAME, "2"))
        return images.at_size(size)

    decision = promotion.promote_if_better(NAME, "3", replace(images, at_size=at), RULE)
    assert decision.champion is not None and decision.champion.version == "2"


def test_a_version_that_is_not_there_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(PromotionError, match="version must be one of mask-detector's; got 9"):
        promotion.force_promotion(NAME, "9")


def test_a_model_that_answers_nan_is_not_promoted(
    files: dict[str, Path], labelled_as: LabelledAs, tmp_path: Path
) -> None:
    path = write_classifier(tmp_path / "nan.onnx", scale=float("nan"))
    (tmp_path / "run").mkdir()
    with start_run("faces", {}) as run:
        version = register(run, tmp_path / "run", path, champion=False)
    decision = promotion.promote_if_better(NAME, version, labelled_as(files["1"]), RULE)
    assert not decision.promoted
    assert decision.reason == "its answers must be finite; got NaN or infinity"


def settled_with(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch, mine: str, theirs: str
) -> tuple[Decision, Decision]:
    """Two runs end together: the other is judged and promoted between this one's last look at the
    alias and its own move.
    """
    images = disputed(files, narrow=(12, 8), broad=(20, 20))
    both = [*images.narrow, *images.broad]
    runs.by_version = {v: images.run(both) for v in "135"}
    other: list[Decision] = []
    move = promotion._make_champion

    def after_the_other(model: Any, version: str, event: Any = "promoted") -> Any:
        if not other and version == mine:
            other.append(promotion.promote_if_better(NAME, theirs, images.images(both), ANY_RECALL))
        return move(model, version, event)

    monkeypatch.setattr(promotion, "_make_champion", after_the_other)
    return promotion.promote_if_better(NAME, mine, images.images(both), ANY_RECALL), other[0]


def test_the_worse_of_two_runs_that_end_together_gives_the_alias_back(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse, better = settled_with(files, runs, monkeypatch, mine="3", theirs="5")
    assert better.promoted and not worse.promoted
    assert worse.reason.startswith("version 5 was made champion meanwhile: accuracy ")
    assert tracking.aliases(NAME)["champion"] == "5"
    assert tags("3")["promotion.decision"] == "not promoted"
    events = [(entry.event, entry.version) for entry in history()]
    assert events == [("promoted", "5"), ("promoted", "3"), ("settled", "5")]


def test_the_better_of_two_runs_that_end_together_keeps_the_alias(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    better, worse = settled_with(files, runs, monkeypatch, mine="5", theirs="3")
    assert worse.promoted and better.promoted
    assert "version 3 was made champion meanwhile" in better.reason
    assert tracking.aliases(NAME) == {"champion": "5", "previous": "3"}


@pytest.mark.parametrize(("mine", "theirs"), [("3", "5"), ("5", "3")])
def test_a_third_version_that_becomes_champion_while_two_are_settled_keeps_the_alias(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch, mine: str, theirs: str
) -> None:
    judge_again = promotion._judge_again

    def beside_a_third(*given: Any) -> Decision:
        promotion.force_promotion(NAME, "1")
        return judge_again(*given)

    monkeypatch.setattr(promotion, "_judge_again", beside_a_third)
    decision, _ = settled_with(files, runs, monkeypatch, mine, theirs)
    assert not decision.promoted
    assert tracking.aliases(NAME)["champion"] == "1"
    assert tags(mine)["promotion.decision"] == "not promoted"
    assert "settled" not in {entry.event for entry in history()}
