"""Champions by rule, in a real registry: no Ray, images as arrays."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from mask_ray import tracking
from mask_ray.config import MaskRayError, PromotionRule
from mask_ray.evaluation import grounds, promotion
from mask_ray.evaluation.champion_history import ChampionHistory, Entry
from mask_ray.evaluation.comparison import Figures, decide
from mask_ray.evaluation.grounds import HeldOutImages, RunImages
from mask_ray.evaluation.judging import Decision
from mask_ray.evaluation.promotion import PromotionError
from mask_ray.models.predictor import Predictor
from mask_ray.tracking import start_run
from tests.support.mlflow_models import NAME, register
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier

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


class Images:
    """What a Dataset gives of images of any size: noise."""

    def __init__(
        self, image_size: int, labels: list[int], numbers: list[int] | None = None
    ) -> None:
        numbers = list(range(len(labels))) if numbers is None else numbers
        self.image = noise(image_size, max(numbers) + 1)[numbers]
        self.label = np.array(labels)
        self.digest = np.array([f"digest {number}" for number in numbers])

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        yield {"image": self.image, "label": self.label, "digest": self.digest}


def rows(image_size: int, labels: list[int], numbers: list[int] | None = None) -> Any:
    return Images(image_size, labels, numbers)


def noise(image_size: int, num_images: int) -> Any:
    rng = np.random.default_rng(1)
    return rng.choice(np.array([0, 255], np.uint8), (num_images, image_size, image_size, 3))


def run_images(labels: list[int], numbers: list[int] | None = None, seen: Any = ()) -> RunImages:
    """What the list of files of a run says: its test split, and the images it was trained on."""
    numbers = list(range(len(labels))) if numbers is None else numbers
    columns = {
        "path": [f"{number}.png" for number in numbers],
        "digest": [f"digest {number}" for number in numbers],
        "label": [CLASS_NAMES[label] for label in labels],
    }
    return RunImages(pa.table(columns), frozenset(f"digest {number}" for number in seen))


@pytest.fixture(scope="module")
def registry(new_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with versions 1 to 5 of one run each; 2 takes another size, 4 has other classes. To
    register them takes MLflow seconds; each test gets a copy of the store.
    """
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(new_store, home)
    write_classifier(home / "1.onnx", seed=1)
    write_classifier(home / "2.onnx", seed=2, image_size=48)
    write_classifier(home / "3.onnx", seed=3)
    write_classifier(home / "4.onnx", class_names=("cat", "dog"))
    write_classifier(home / "5.onnx", seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASK_RAY_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        for version in "12345":
            path = home / f"{version}.onnx"
            size = Predictor(path).image_size
            example = np.zeros((1, size, size, 3), np.uint8)
            folder = home / version
            folder.mkdir()
            with start_run("faces", {}) as run:
                assert register(run, folder, path, champion=False, example=example) == version
    return home


@pytest.fixture
def files(registry: Path, home: Path, store: None) -> dict[str, Path]:
    """The file of each registered version."""
    shutil.copy(registry / "mlflow.db", home)
    return {version: registry / f"{version}.onnx" for version in "12345"}


class Runs:
    """The images of each version's run: those that versions are compared on, unless set."""

    def __init__(self) -> None:
        self.given = run_images([0, 1])
        self.by_version: dict[str, RunImages] = {}
        self.read: list[int] = []

    def load(self, run_id: str) -> RunImages:
        (version,) = MlflowClient().search_model_versions(f"run_id = '{run_id}'")
        return self.by_version.get(str(version.version), self.given)

    def dataset_of(self, files: pa.Table, class_names: list[str], limits: Any) -> Any:
        numbers = [int(path.partition(".")[0]) for path in files["path"].to_pylist()]
        labels = [class_names.index(name) for name in files["label"].to_pylist()]
        self.read += numbers
        return lambda size: rows(size, labels, numbers)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(grounds, "load_run_images", runs.load)
    monkeypatch.setattr(grounds, "dataset_of", runs.dataset_of)
    return runs


@pytest.fixture
def labelled_as(runs: Runs) -> Callable[..., HeldOutImages]:
    """Makes forty images, labelled as a model predicts except for some; all runs tested on them."""

    def labelled(path: Path, num_wrong: int = 0) -> HeldOutImages:
        predictor = Predictor(path)
        own = predictor.predict(noise(predictor.image_size, 40)).argmax(axis=1)
        own[:num_wrong] = 1 - own[:num_wrong]
        labels = own.tolist()
        runs.given = run_images(labels)
        return HeldOutImages(lambda size: rows(size, labels), list(CLASS_NAMES), "d1")

    return labelled


def tags(version: str) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(NAME, version).tags)


RULE = PromotionRule()
LabelledAs = Callable[..., HeldOutImages]


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


@dataclass(frozen=True)
class Disputed:
    """Images that version 5 answers rightly, and the others only in part.

    Args:
        narrow: Numbers of the images that version 3 is tested on: it is right on all of them.
        broad: Numbers of those that version 1 is tested on: it is right on all of them.
        labels: Label of every image, by its number.
    """

    narrow: list[int]
    broad: list[int]
    labels: list[int]

    def images(self, numbers: list[int]) -> HeldOutImages:
        labels = [self.labels[number] for number in numbers]
        return HeldOutImages(
            lambda size: rows(size, labels, numbers), list(CLASS_NAMES), f"d{numbers[0]}"
        )

    def run(self, numbers: list[int], seen: Any = ()) -> RunImages:
        return run_images([self.labels[number] for number in numbers], numbers, seen)


def disputed(files: dict[str, Path], narrow: tuple[int, int], broad: tuple[int, int]) -> Disputed:
    """Choose images. `narrow`: how many of them version 1 answers rightly, and how many wrongly;
    `broad`: the same of version 3.
    """
    pixels = noise(IMAGE_SIZE, 1000)
    first, third, truth = (
        Predictor(files[version]).predict(pixels).argmax(axis=1) for version in "135"
    )
    taken: set[int] = set()

    def some(is_right: Any, other_is_right: Any, counts: tuple[int, int]) -> list[int]:
        chosen: list[int] = []
        for wanted, count in zip((True, False), counts, strict=True):
            found = np.flatnonzero(is_right & (other_is_right == wanted)).tolist()
            chosen += [number for number in found if number not in taken][:count]
        assert len(chosen) == sum(counts)
        taken.update(chosen)
        return chosen

    first_is_right, third_is_right = first == truth, third == truth
    narrow_ones = some(third_is_right, first_is_right, narrow)
    return Disputed(narrow_ones, some(first_is_right, third_is_right, broad), truth.tolist())


# The recall of so few images is chance.
ANY_RECALL = PromotionRule(min_recall=0)


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
