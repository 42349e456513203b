"""Who was champion: rollback, deleted versions, and who made each change."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mask_ray import tracking
from mask_ray.evaluation import promotion
from mask_ray.evaluation.champion_history import ChampionHistory, Entry
from mask_ray.evaluation.promotion import PromotionError
from tests.support.mlflow_models import NAME
from tests.support.promotion_images import RULE, LabelledAs, tags


def test_rollback_goes_back_again_and_again(files: dict[str, Path]) -> None:
    for version in ("1", "3", "2"):
        promotion.force_promotion(NAME, version)
    assert promotion.roll_back(NAME).version == "3"
    assert tracking.aliases(NAME) == {"champion": "3", "previous": "1", "challenger": "5"}
    assert promotion.roll_back(NAME).version == "1"
    assert tracking.aliases(NAME) == {"champion": "1", "challenger": "5"}
    with pytest.raises(PromotionError, match="version 1 of mask-detector is the first champion"):
        promotion.roll_back(NAME)


def test_rollback_passes_over_a_version_that_is_gone(files: dict[str, Path]) -> None:
    for version in ("1", "3", "2"):
        promotion.force_promotion(NAME, version)
    MlflowClient().delete_model_version(NAME, "3")
    assert promotion.roll_back(NAME).version == "1"


def test_rollback_knows_of_an_alias_that_was_moved_by_hand(files: dict[str, Path]) -> None:
    promotion.force_promotion(NAME, "1")
    MlflowClient().set_registered_model_alias(NAME, "champion", "3")
    assert promotion.roll_back(NAME).version == "1"


def history() -> list[Entry]:
    return ChampionHistory(tracking.RegisteredModel(NAME)).entries()


def test_a_deleted_champion_does_not_break_the_next_promotion(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    for version in ("1", "3"):
        promotion.force_promotion(NAME, version)
    MlflowClient().delete_model_version(NAME, "3")

    decision = promotion.promote_if_better(NAME, "5", labelled_as(files["5"]), RULE)

    assert decision.promoted
    assert decision.champion is not None and decision.champion.version == "1"
    assert tracking.aliases(NAME) == {"champion": "5", "previous": "1"}
    assert promotion.roll_back(NAME).version == "1"


def test_rollback_mends_a_deleted_champion(files: dict[str, Path]) -> None:
    for version in ("1", "3", "5"):
        promotion.force_promotion(NAME, version)
    MlflowClient().delete_model_version(NAME, "5")
    assert promotion.roll_back(NAME).version == "3"
    assert tracking.aliases(NAME) == {"champion": "3", "previous": "1"}


def test_every_change_says_who_made_it_and_none_is_lost(files: dict[str, Path]) -> None:
    promotion.force_promotion(NAME, "1")
    promotion.force_promotion(NAME, "3")
    before = tracking.RegisteredModel(NAME).tags()
    promotion.roll_back(NAME)

    assert before.items() <= tracking.RegisteredModel(NAME).tags().items()
    assert [(e.event, e.version, e.replaced) for e in history()] == [
        ("forced", "1", None),
        ("forced", "3", "1"),
        ("rolled back", "1", "3"),
    ]
    assert all(entry.user and entry.host and entry.program for entry in history())
    assert json.loads(tags("3")["promotion.by"])["user"] == history()[0].user


def test_champions_of_an_earlier_release_are_still_known(files: dict[str, Path]) -> None:
    MlflowClient().set_registered_model_tag(NAME, "champions", '["1", "3"]')
    MlflowClient().set_registered_model_alias(NAME, "champion", "3")
    assert promotion.roll_back(NAME).version == "1"


def test_without_champions_there_is_nothing_to_roll_back_to(files: dict[str, Path]) -> None:
    with pytest.raises(PromotionError, match="models:/mask-detector has no champion"):
        promotion.roll_back(NAME)
