"""Champions by rule, in a real registry: no Ray, images as arrays."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from mask_ray import tracking
from mask_ray.config import PromotionRule
from mask_ray.evaluation import promotion
from mask_ray.evaluation.promotion import Figures, HeldOutImages, PromotionError, decide
from mask_ray.models.predictor import Predictor
from mask_ray.tracking import start_run
from tests.support.mlflow_models import NAME, register
from tests.support.onnx_files import CLASS_NAMES, write_classifier

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
            "its recall of without_mask is 0.7900, below min_recall (0.8)",
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


class Images:
    """What a Dataset gives of images of any size: noise."""

    def __init__(self, image_size: int, labels: list[int]) -> None:
        rng = np.random.default_rng(1)
        shape = (len(labels), image_size, image_size, 3)
        self.image = rng.choice(np.array([0, 255], np.uint8), shape)
        self.label = np.array(labels)

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        yield {"image": self.image, "label": self.label}


@pytest.fixture(scope="module")
def registry(new_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with versions 1 to 4, registered one by one; 2 takes another size, 4 has other
    classes. To register them takes MLflow seconds; each test gets a copy of the store.
    """
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(new_store, home)
    write_classifier(home / "1.onnx", seed=1)
    write_classifier(home / "2.onnx", seed=2, image_size=48)
    write_classifier(home / "3.onnx", seed=3)
    write_classifier(home / "4.onnx", class_names=("cat", "dog"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        with start_run("faces", {}) as run:
            for version in "1234":
                path = home / f"{version}.onnx"
                size = Predictor(path).image_size
                example = np.zeros((1, size, size, 3), np.uint8)
                folder = home / version
                folder.mkdir()
                assert register(run, folder, path, champion=False, example=example) == version
    return home


@pytest.fixture
def files(registry: Path, home: Path, store: None) -> dict[str, Path]:
    """The file of each registered version."""
    shutil.copy(registry / "mlflow.db", home)
    return {version: registry / f"{version}.onnx" for version in "1234"}


def labelled_as(path: Path, num_wrong: int = 0) -> HeldOutImages:
    """Forty images, labelled as a model predicts except for some."""
    predictor = Predictor(path)

    def at(size: int) -> Any:
        own = Images(predictor.image_size, [0] * 40)
        labels = predictor.predict(own.image).argmax(axis=1)
        labels[:num_wrong] = 1 - labels[:num_wrong]
        return Images(size, labels.tolist())

    return HeldOutImages(at, list(CLASS_NAMES), "d1")


def tags(version: str) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(NAME, version).tags)


RULE = PromotionRule()


def test_the_first_version_is_champion_and_a_better_one_takes_its_place(
    files: dict[str, Path],
) -> None:
    assert tracking.aliases(NAME) == {"challenger": "4"}
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


def test_a_version_that_is_no_better_stays_the_challenger(files: dict[str, Path]) -> None:
    promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    MlflowClient().set_registered_model_alias(NAME, "challenger", "3")
    decision = promotion.promote_if_better(NAME, "3", labelled_as(files["1"], num_wrong=1), RULE)
    assert not decision.promoted
    assert tracking.aliases(NAME) == {"champion": "1", "challenger": "3"}
    assert tags("3")["promotion.decision"] == "not promoted"
    assert "is not better" in tags("3")["promotion.reason"]
    assert json.loads(tags("3")["promotion.champion"])["accuracy"] == 0.975


def test_a_champion_of_other_classes_gives_way_only_to_force(files: dict[str, Path]) -> None:
    promotion.force_promotion(NAME, "4")
    decision = promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), RULE)
    assert not decision.promoted
    assert decision.reason == (
        "the champion, version 4, cannot be compared: its classes are cat, dog, those of the "
        "images with_mask, without_mask"
    )
    assert promotion.force_promotion(NAME, "1").promoted
    assert tracking.aliases(NAME)["champion"] == "1"


def test_rollback_goes_back_again_and_again(files: dict[str, Path]) -> None:
    for version in ("1", "3", "2"):
        promotion.force_promotion(NAME, version)
    assert promotion.roll_back(NAME).version == "3"
    assert tracking.aliases(NAME) == {"champion": "3", "previous": "1", "challenger": "4"}
    assert promotion.roll_back(NAME).version == "1"
    assert tracking.aliases(NAME) == {"champion": "1", "challenger": "4"}
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


def test_a_promotion_that_was_cut_off_is_completed_by_the_next(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
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


def test_a_champion_that_changes_meanwhile_is_compared_with_too(files: dict[str, Path]) -> None:
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
