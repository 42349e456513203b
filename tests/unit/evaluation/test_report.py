"""Intervals, calibration, slices, corruptions and the report, on answers made up for them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_ray.data import near_duplicates
from mask_ray.evaluation import Predictions, compute_metrics, examine, make_report
from mask_ray.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
    scaled,
)
from mask_ray.evaluation.curves import curves, thresholds
from mask_ray.evaluation.examination import NUM_DOUBTS, Traits
from mask_ray.evaluation.intervals import intervals, share_interval
from mask_ray.evaluation.robustness import CORRUPTIONS, accuracy_under_corruption
from mask_ray.evaluation.slices import by_trait
from mask_ray.models.predictor import Predictor
from tests.support import onnx_files
from tests.support.row_batches import InMemory

NAMES = ["cat", "dog"]


def of_first(labels: list[int], first: list[float]) -> Predictions:
    """With the probability of a cat of each image."""
    scores = np.array(first)
    return Predictions(np.array(labels), np.stack([scores, 1 - scores], axis=1), NAMES)


def drawn(num: int, sharpening: float = 1.0, seed: int = 0) -> Predictions:
    """Labels that are as likely as the model said, before it was made too sure of itself."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 2, num)
    labels = (rng.random(num) > 1 / (1 + np.exp(-log_odds))).astype(int)
    return of_first(labels.tolist(), (1 / (1 + np.exp(-sharpening * log_odds))).tolist())


# Half the images are cats; nine of ten are taken for what they are, with a probability of 0.9.
NINE_OF_TEN = of_first([0] * 50 + [1] * 50, [0.9] * 45 + [0.1] * 5 + [0.1] * 45 + [0.9] * 5)


def test_every_figure_is_within_its_interval() -> None:
    predictions = drawn(400)
    found, measured = intervals(predictions), compute_metrics(predictions)

    for name in ("accuracy", "log_loss", "roc_auc"):
        assert found[name]["low"] < measured[name] < found[name]["high"]
    for name in ("precision", "recall", "f1"):
        for animal in NAMES:
            assert found[name][animal]["low"] < measured[name][animal] < found[name][animal]["high"]


def test_intervals_are_as_wide_as_the_normal_approximation_says() -> None:
    found = intervals(of_first([0, 1] * 500, [0.9, 0.1] * 400 + [0.1, 0.9] * 100))["accuracy"]
    deviation = np.sqrt(0.8 * 0.2 / 1000)
    assert found["low"] == pytest.approx(0.8 - 1.96 * deviation, abs=0.004)
    assert found["high"] == pytest.approx(0.8 + 1.96 * deviation, abs=0.004)


def test_intervals_repeat_and_other_seeds_give_others() -> None:
    assert intervals(NINE_OF_TEN) == intervals(NINE_OF_TEN)
    assert intervals(NINE_OF_TEN) != intervals(NINE_OF_TEN, seed=1)


def test_no_mistakes_among_few_images_prove_little() -> None:
    found = intervals(of_first([0, 0, 1], [0.9, 0.8, 0.1]))

    # The exact interval: 0.025 ** (1 / n).
    assert found["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 3))
    assert found["recall"]["cat"]["low"] == pytest.approx(0.025 ** (1 / 2))
    assert found["recall"]["dog"] == {"low": pytest.approx(0.025), "high": 1.0}
    assert share_interval(3, 3) == found["accuracy"]


def test_a_class_without_images_has_no_intervals() -> None:
    found = intervals(of_first([0, 0], [0.9, 0.4]))
    assert "roc_auc" not in found
    assert set(found["recall"]) == {"cat"}


def test_calibration_error_worked_out_by_hand() -> None:
    # Two bins: at 0.9, of four images three are right; at 0.6, of one none.
    predictions = of_first([0, 0, 0, 1, 1], [0.9, 0.9, 0.9, 0.9, 0.6])
    assert expected_calibration_error(predictions) == pytest.approx(
        4 / 5 * abs(0.9 - 0.75) + 1 / 5 * abs(0.6 - 0)
    )
    assert expected_calibration_error(NINE_OF_TEN) == pytest.approx(0, abs=1e-9)
    assert [(b["num_images"], b["accuracy"]) for b in reliability(predictions)] == [
        (1, 0),
        (4, 0.75),
    ]


@pytest.mark.parametrize("sharpening", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_a_model_too_sure(sharpening: float) -> None:
    validation, test = drawn(5000, sharpening), drawn(5000, sharpening, seed=1)

    temperature = fit_temperature(validation)

    assert temperature == pytest.approx(sharpening, rel=0.1)
    assert expected_calibration_error(scaled(test, temperature)) < 0.02


def test_a_model_that_makes_no_mistakes_is_not_told_to_be_certain() -> None:
    temperature = fit_temperature(of_first([0, 1] * 50, [0.98, 0.02] * 50))
    # 101 / 102, as its 100 images allow to say.
    assert scaled(of_first([0], [0.98]), temperature).probabilities[0, 0] == pytest.approx(
        101 / 102
    )


def test_thresholds_trade_recall_for_precision() -> None:
    rows = thresholds(of_first([0, 0, 1, 1], [0.97, 0.6, 0.55, 0.1]))["cat"]
    by_threshold = {row["threshold"]: (row["precision"], row["recall"]) for row in rows}
    assert by_threshold[0.05] == (0.5, 1)
    assert by_threshold[0.5] == (pytest.approx(2 / 3), 1)
    assert by_threshold[0.95] == (1, 0.5)
    assert by_threshold[0.99] == (None, 0)


def test_curves_are_short_and_begin_and_end_where_they_should() -> None:
    found = curves(drawn(5000))["dog"]
    assert len(found["roc"]) <= 200
    assert (found["roc"][0], found["roc"][-1]) == ([0, 0], [1, 1])
    assert found["roc_auc"] == pytest.approx(compute_metrics(drawn(5000))["roc_auc"])


def test_slices_find_the_folder_that_goes_wrong() -> None:
    predictions = of_first([0, 0, 1, 1], [0.9, 0.9, 0.8, 0.8])
    folders = ["/d/cat/a", "/d/cat/b", "/d/dog/a", "/d/dog/a"]
    traits = Traits(folders, np.array([0, 64, 64, 500]), np.array([1.0, 2, 3, 4]), np.ones(4))

    found = by_trait(predictions, traits)

    folder = {each.name: (each.num_images, each.accuracy) for each in found["folder"]}
    assert folder == {"cat/a": (1, 1), "cat/b": (1, 1), "dog/a": (2, 0)}
    assert [each.accuracy for each in found["brightness"]] == [1, 1, 0, 0]
    # A file that is elsewhere has no size, and all are equally sharp.
    assert sum(each.num_images for each in found["longer side, px"]) == 3
    assert "sharpness" not in found


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_changes_images_more_with_its_strength(name: str) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(40, 216, (3, 3, 3), dtype=np.uint8))
    image = np.asarray(small.resize((96, 96), Image.Resampling.BILINEAR))
    corrupt, levels, _ = CORRUPTIONS[name]

    changes = []
    for level in levels:
        worse = corrupt(image, level, np.random.default_rng(0))
        assert (worse.shape, worse.dtype) == (image.shape, image.dtype)
        changes.append(np.abs(worse.astype(float) - image).mean())

    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return onnx_files.write_classifier(tmp_path / "model.onnx", ("a & b", "<i>"))


def noise(folder: Path, num: int = 150) -> InMemory:
    """Images of noise in files of two sizes, with labels that no model can know."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    paths = [folder / f"{index}.png" for index in range(num)]
    for index, path in enumerate(paths):
        Image.fromarray(pixels[index]).resize((40 + 40 * (index % 2),) * 2).save(path)
    names = np.array([str(path) for path in paths], object)
    return InMemory(image=pixels, label=rng.integers(0, 2, num), path=names)


def test_the_examination_keeps_a_sample_and_the_answers_to_look_at(
    onnx: Path, tmp_path: Path
) -> None:
    rows = noise(tmp_path)

    found = examine(rows, Predictor(onnx), num_sampled=70)

    np.testing.assert_array_equal(found.sample, rows.columns["image"][:70])
    np.testing.assert_array_equal(found.sample_labels, rows.columns["label"][:70])
    assert set(found.traits.longer_side_px.tolist()) == {40, 80}
    wrong = found.predictions.predicted != found.predictions.labels
    sureness = found.predictions.probabilities.max(axis=1)
    surest, least = np.sort(sureness[wrong])[::-1][:24], np.sort(sureness[~wrong])[:12]
    assert (len(surest), len(least)) == (24, 12)
    np.testing.assert_allclose([m.probability for m in found.mistakes], surest, rtol=1e-5)
    np.testing.assert_allclose([d.probability for d in found.doubts], least, rtol=1e-5)
    assert all(answer.predicted != answer.label for answer in found.mistakes)
    assert all(answer.predicted == answer.label for answer in found.doubts)


def test_the_gallery_of_doubts_has_one_of_each_picture(onnx: Path, tmp_path: Path) -> None:
    """Copies of the picture that the model is least sure of, turned, in two batches."""
    predictor, rows = Predictor(onnx), noise(tmp_path, 60)
    pixels = rows.columns["image"]
    for number, side in enumerate(np.linspace(4, 28, 60).astype(int)):
        pixels[number, :side] = pixels[number, :side] // 2 + 100
    first = int(predictor.predict(pixels).max(axis=1).argmin())
    copies = [np.rot90(pixels[first], turns) for turns in range(4)] * 20
    pixels = np.concatenate([[*copies], pixels, [*copies]])
    labels = predictor.predict(pixels).argmax(axis=1)
    paths = np.array([str(number) for number in range(len(pixels))], object)

    found = examine(InMemory(image=pixels, label=labels, path=paths), predictor, num_sampled=0)

    shown = np.stack([near_duplicates.signature(d.image, 32, 32) for d in found.doubts])
    assert len(shown) == NUM_DOUBTS
    assert near_duplicates.first_of_each(shown, NUM_DOUBTS) == [*range(NUM_DOUBTS)]
    probabilities = [doubt.probability for doubt in found.doubts]
    assert probabilities == sorted(probabilities)


def test_plain_pictures_are_no_copies_of_each_other() -> None:
    plain = np.full((3, near_duplicates.SIGNATURE_BYTES), 7, np.uint8)

    assert near_duplicates.first_of_each(plain, 9) == [0, 1, 2]
    assert near_duplicates.first_of_each(plain, 2) == [0, 1]


def test_robustness_repeats_with_its_seed(onnx: Path, tmp_path: Path) -> None:
    found = examine(noise(tmp_path), Predictor(onnx), num_sampled=40)
    first, again = (
        accuracy_under_corruption(Predictor(onnx), found.sample, found.sample_labels)
        for _ in range(2)
    )
    assert first == again
    assert [len(levels) for levels in first.values()] == [3] * 6


def test_the_report_is_one_page_and_the_same_figures_as_json(onnx: Path, tmp_path: Path) -> None:
    predictor = Predictor(onnx)
    found = examine(noise(tmp_path), predictor, num_sampled=20)

    make_report(found, onnx, predictor, {"model": "<b>"}).write(tmp_path / "out")

    page = (tmp_path / "out" / "evaluation.html").read_text()
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "&lt;b&gt;" in page and "<i>" not in page and "a &amp; b" in page
    assert page.count("<svg") == 4
    assert "there are no heat maps" in page
    addresses = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert addresses and all(a.startswith(("data:image/jpeg", "#")) for a in addresses)
    assert f"{100 * figures['accuracy']:.1f}%" in page
    assert figures["accuracy"] == compute_metrics(found.predictions)["accuracy"]
    assert set(figures["intervals"]) >= {"accuracy", "expected_calibration_error", "recall"}


def test_a_report_needs_neither_mistakes_nor_corruptions(onnx: Path, tmp_path: Path) -> None:
    predictor, rows = Predictor(onnx), noise(tmp_path)
    rows.columns["label"] = predictor.predict(rows.columns["image"]).argmax(axis=1)

    report = make_report(examine(rows, predictor, num_sampled=0), onnx, predictor, {})

    assert report.figures["num_mistakes"] == 0
    assert "Mistakes, the most confident first" not in report.html
    assert "Right, but the least confident" in report.html
    assert len(report.figures["least_sure"]) == 12
    assert "Robustness" not in report.html
