"""The images that versions are compared on: no Ray, images as arrays."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mask_ray import tracking
from mask_ray.config import MaskRayError, PromotionRule
from mask_ray.evaluation import grounds, promotion
from mask_ray.evaluation.grounds import HeldOutImages
from mask_ray.tracking import start_run
from tests.support.mlflow_models import NAME
from tests.support.onnx_files import CLASS_NAMES
from tests.support.promotion_images import ANY_RECALL, RULE, LabelledAs, Runs, disputed, rows, tags


def test_a_model_of_less_data_does_not_win_on_its_own_test_split(
    files: dict[str, Path], runs: Runs
) -> None:
    images = disputed(files, narrow=(12, 8), broad=(20, 20))
    runs.by_version = {
        "1": images.run(images.broad),
        "3": images.run(images.narrow),
        "5": images.run(images.narrow),
    }
    promotion.promote_if_better(NAME, "1", images.images(images.broad), ANY_RECALL)

    narrow = promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)

    assert not narrow.promoted
    assert narrow.reason == "accuracy 0.6667 against 0.8667 of version 1 is not better"
    assert tracking.aliases(NAME)["champion"] == "1"
    own = narrow.grounds["the given test split"]
    assert (own.challenger.accuracy, own.champion.accuracy) == (1.0, 0.6)
    other = narrow.grounds["the test split of version 1"]
    assert (other.challenger.accuracy, other.champion.accuracy) == (0.5, 1.0)
    assert narrow.challenger is not None and narrow.challenger.num_images == 60
    assert json.loads(tags("3")["promotion.grounds"]) == asdict(narrow)["grounds"]

    better = promotion.promote_if_better(NAME, "5", images.images(images.narrow), ANY_RECALL)
    assert better.promoted
    assert tracking.aliases(NAME)["champion"] == "5"


def test_a_version_may_be_worse_on_one_ground_within_the_tolerance(
    files: dict[str, Path], runs: Runs
) -> None:
    images = disputed(files, narrow=(10, 30), broad=(18, 2))
    runs.by_version = {"1": images.run(images.broad), "3": images.run(images.narrow)}
    promotion.promote_if_better(NAME, "1", images.images(images.broad), ANY_RECALL)
    own = images.images(images.narrow)

    strict = promotion.promote_if_better(NAME, "3", own, ANY_RECALL)
    assert not strict.promoted
    assert strict.reason == (
        "accuracy 0.9000 against 1.0000 of version 1 is worse on the test split of version 1, "
        "by more than 0.005"
    )

    rule = ANY_RECALL.model_copy(update={"promotion_tolerance": 0.1})
    assert promotion.promote_if_better(NAME, "3", own, rule).promoted


def test_images_that_a_version_was_trained_on_do_not_count(
    files: dict[str, Path], runs: Runs
) -> None:
    images = disputed(files, narrow=(10, 10), broad=(20, 10))
    missed = images.broad[20:]
    runs.by_version = {
        "1": images.run(images.broad),
        "3": images.run(images.narrow, seen=missed),
    }
    promotion.promote_if_better(NAME, "1", images.images(images.broad), ANY_RECALL)
    decision = promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)
    assert decision.grounds["the test split of version 1"].champion.num_images == 20

    assert decision.promoted

    promotion.force_promotion(NAME, "1")
    runs.by_version["3"] = images.run(images.narrow, seen=images.broad)
    decision = promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)
    assert not decision.promoted
    assert decision.reason == (
        "the champion, version 1, cannot be compared: the test split of version 1 has no image "
        "that neither version was trained on"
    )


def test_only_images_that_are_not_there_yet_are_read(files: dict[str, Path], runs: Runs) -> None:
    images = disputed(files, narrow=(10, 10), broad=(10, 10))
    runs.by_version = {
        "1": images.run([*images.narrow, *images.broad[:4]]),
        "3": images.run(images.narrow),
    }
    promotion.promote_if_better(NAME, "1", images.images(images.narrow), ANY_RECALL)
    promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)
    assert runs.read == images.broad[:4]


def test_a_champion_whose_images_cannot_be_read_keeps_its_place(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = disputed(files, narrow=(10, 10), broad=(10, 10))
    runs.by_version = {"1": images.run(images.broad), "3": images.run(images.narrow)}
    promotion.promote_if_better(NAME, "1", images.images(images.broad), ANY_RECALL)
    read = runs.dataset_of

    def with_a_bad_file(files: pa.Table, class_names: list[str], limits: Any) -> Any:
        def at(size: int) -> Any:
            rows = read(files, class_names, limits)(size)
            (batch,) = rows.iter_batches(64)
            errors = np.full(len(batch["label"]), "", dtype=object)
            errors[3] = "cannot be read: No such file or directory"
            rows.iter_batches = lambda batch_size: iter(
                [batch | {"path": np.array(files["path"].to_pylist()), "error": errors}]
            )
            return rows

        return at

    monkeypatch.setattr(grounds, "dataset_of", with_a_bad_file)
    decision = promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)
    assert not decision.promoted
    assert decision.reason == (
        "the champion, version 1, cannot be compared: the test split of version 1 cannot be read: "
        f"{images.broad[3]}.png cannot be read: No such file or directory"
    )


def test_a_champion_whose_run_lists_no_files_keeps_its_place(files: dict[str, Path]) -> None:
    images = disputed(files, narrow=(10, 10), broad=(10, 10))
    promotion.force_promotion(NAME, "1")
    decision = promotion.promote_if_better(NAME, "3", images.images(images.narrow), ANY_RECALL)
    assert not decision.promoted
    assert "cannot be compared: the list of files of its run" in decision.reason


def test_the_list_of_files_of_a_run_says_what_it_was_tested_and_trained_on(
    store: None, tmp_path: Path
) -> None:
    columns = ("path", "digest", "label", "error", "split")
    rows = [
        ("a.jpg", "d1", "cat", "", "train"),
        ("b.jpg", "d2", "cat", "", "val"),
        ("c.jpg", "d3", "dog", "", "test"),
        ("d.jpg", "d4", "dog", "not an image", ""),
        ("e.jpg", "d5", "dog", "", "left out"),
    ]
    named = dict(zip(columns, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({k: list(v) for k, v in named.items()}), tmp_path / "files.parquet")
    with start_run("faces", {}) as run:
        run.log_file(tmp_path / "files.parquet")

    listed = grounds.load_run_images(run.run_id)

    assert listed.tested.to_pylist() == [{"path": "c.jpg", "digest": "d3", "label": "dog"}]
    assert listed.seen == {"d1", "d2"}


def test_the_reference_set_is_remembered_and_counts(
    files: dict[str, Path], runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = disputed(files, narrow=(10, 10), broad=(15, 5))
    runs.by_version = dict.fromkeys("13", images.run(images.narrow))
    asked: list[str] = []

    def load_reference(source: str, limits: Any, image_size: int) -> HeldOutImages:
        asked.append(source)
        return images.images(images.broad)

    monkeypatch.setattr(grounds, "load_reference", load_reference)
    own = images.images(images.narrow)
    others = str(tmp_path / "others")
    promotion.promote_if_better(NAME, "1", own, PromotionRule(min_recall=0, reference_data=others))

    decision = promotion.promote_if_better(NAME, "3", own, ANY_RECALL)

    assert asked == [others] * 2
    assert not decision.promoted
    assert "is worse on the reference set" in decision.reason
    assert decision.grounds["the reference set"].challenger.accuracy == 0.75


def test_a_reference_set_that_cannot_be_read_stops_promotion(
    files: dict[str, Path], labelled_as: LabelledAs, tmp_path: Path
) -> None:
    rule = PromotionRule(reference_data=str(tmp_path / "missing"))
    decision = promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), rule)
    assert not decision.promoted
    assert "cannot be compared" in decision.reason and "missing" in decision.reason


def test_a_reference_set_of_a_relative_path_is_rejected(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    with pytest.raises(MaskRayError, match=r"must be an absolute path.* got photos"):
        promotion.promote_if_better(
            NAME, "1", labelled_as(files["1"]), PromotionRule(reference_data="photos")
        )


def test_a_reference_set_with_credentials_is_not_stored(
    files: dict[str, Path], labelled_as: LabelledAs
) -> None:
    rule = PromotionRule(reference_data="s3://key:secret@bucket/photos")
    with pytest.raises(MaskRayError, match="reference_data is stored with the model") as told:
        promotion.promote_if_better(NAME, "1", labelled_as(files["1"]), rule)
    assert "secret" not in str(told.value)


def test_images_without_a_class_decide_nothing(files: dict[str, Path], runs: Runs) -> None:
    images = HeldOutImages(lambda size: rows(size, [0] * 10), list(CLASS_NAMES), "d1")
    decision = promotion.promote_if_better(NAME, "1", images, RULE)
    assert not decision.promoted
    assert "have none of without_mask" in decision.reason
