"""The rule by which a version is promoted."""

from dataclasses import replace
from typing import Any

import pytest

from mask_ray.config import PromotionRule
from mask_ray.evaluation.comparison import Figures, decide

FIGURES = Figures(
    version="1",
    num_images=200,
    accuracy=0.95,
    balanced_accuracy=0.94,
    log_loss=0.2,
    recall={"with_mask": 0.98, "without_mask": 0.9},
)


@pytest.mark.parametrize(
    ("rule", "changes", "promoted", "reason"),
    [
        ({}, {"accuracy": 0.955}, True, "accuracy 0.9550 against 0.9500 of version 1 is better"),
        ({}, {}, False, "accuracy 0.9500 against 0.9500 of version 1 is not better"),
        ({}, {"accuracy": 0.94, "log_loss": 0.1}, False, "accuracy 0.9400 against 0.9500"),
        (
            {"promotion_margin": 0.01},
            {"accuracy": 0.96},
            False,
            "accuracy 0.9600 against 0.9500 of version 1 is not better, by more than 0.01",
        ),
        ({"promotion_margin": 0.01}, {"accuracy": 0.965}, True, "is better, by more than 0.01"),
        ({"promotion_metric": "log_loss"}, {"log_loss": 0.19}, True, "log_loss 0.1900 against"),
        ({"promotion_metric": "log_loss"}, {"log_loss": 0.21}, False, "log_loss 0.2100 against"),
        (
            {"promotion_metric": "balanced_accuracy"},
            {"accuracy": 0.9, "balanced_accuracy": 0.95},
            True,
            "balanced_accuracy 0.9500 against 0.9400",
        ),
        (
            {"min_recall": 0.8},
            {"accuracy": 0.99, "recall": {"with_mask": 1.0, "without_mask": 0.79}},
            False,
            "its recall of without_mask is 0.7900, below --min-recall (0.8)",
        ),
    ],
)
def test_a_version_is_promoted_only_by_the_rule(
    rule: dict[str, Any], changes: dict[str, Any], promoted: bool, reason: str
) -> None:
    challenger = replace(FIGURES, version="2", **changes)
    decided, why = decide(PromotionRule(**rule), challenger, FIGURES)
    assert decided == promoted
    assert reason in why


def test_a_first_version_needs_only_the_recall() -> None:
    assert decide(PromotionRule(), FIGURES, None) == (True, "there was no champion")
    promoted, reason = decide(PromotionRule(min_recall=0.91), FIGURES, None)
    assert not promoted and "without_mask is 0.9000" in reason


@pytest.mark.parametrize(("recall", "promoted"), [(0.0, False), (0.5, False), (0.51, True)])
def test_by_default_every_recall_must_be_better_than_chance(recall: float, promoted: bool) -> None:
    figures = replace(FIGURES, recall={"with_mask": 1.0, "without_mask": recall})
    decided, reason = decide(PromotionRule(), figures, None)
    assert decided == promoted
    assert promoted or f"its recall of without_mask is {recall:.4f}, no more than chance" in reason
    assert decide(PromotionRule(min_recall=0), figures, None)[0]
