"""What a report tells: intervals, calibration, parts, harm and mistakes; and how it looks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser_page import chromium
from onnx import TensorProto, helper, numpy_helper
from onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier

from mask_ray.evaluation import (
    Predictions,
    calibration,
    examine,
    fit_temperature,
    predict,
    report,
    robustness,
    write_calibrated,
)
from mask_ray.evaluation.heatmaps import HeatMaps, NoHeatMapsError
from mask_ray.evaluation.intervals import intervals, of_share
from mask_ray.evaluation.report import html
from mask_ray.predictor import Predictor


class Rows:
    """A Ray Dataset of pictures, batch by batch: those of a label are bright, or dark."""

    def __init__(self, num_images: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(2, size=num_images)
        noise = rng.integers(100, size=(num_images, IMAGE_SIZE, IMAGE_SIZE, 3))
        self.images = (noise + 150 * self.labels[:, None, None, None]).astype(np.uint8)

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.labels), batch_size):
            rows = range(start, min(start + batch_size, len(self.labels)))
            yield {
                "image": self.images[rows],
                "label": self.labels[rows].astype(np.int64),
                "path": np.array([f"photos/{CLASS_NAMES[self.labels[r]]}/{r}.jpg" for r in rows]),
                "longer_side": np.array(rows, np.int32),
            }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "model.onnx")


def pooled(path: Path) -> Path:
    """A classifier that ends as MobileNetV2's does; class 0 is where the left half is bright."""
    kernel = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "kernel"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    shape = ["N", IMAGE_SIZE, IMAGE_SIZE, 3]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    metadata = {"class_names": json.dumps(CLASS_NAMES), "image_size": str(IMAGE_SIZE)}
    helper.set_model_props(made, metadata)
    onnx.save(made, path)
    return path


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    # Two images at 0.9, one of them right; two at 0.6, both right.
    labels = np.array([0, 1, 0, 0])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])

    found = calibration.bins(labels, probabilities)

    assert [(b.num_images, b.accuracy) for b in found] == [(2, 1), (2, 0.5)]
    assert calibration.expected_error(found) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_the_temperature_of_answers_that_are_too_sure_mends_them() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 1, size=4000)
    labels = (rng.uniform(size=4000) > true).astype(np.int64)
    logits = 3 * np.log(true / (1 - true))
    probabilities = np.stack([1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))], 1)

    assert fit_temperature(labels, probabilities) == pytest.approx(3, rel=0.1)


def test_images_without_a_mistake_do_not_make_a_model_certain() -> None:
    probabilities = np.tile([0.9, 0.1], (100, 1))
    assert 0.3 < fit_temperature(np.zeros(100, np.int64), probabilities) < 1


def test_the_file_that_is_served_carries_the_temperature(model: Path, tmp_path: Path) -> None:
    write_calibrated(model, tmp_path / "calibrated.onnx", 2.5)
    images = Rows(5).images
    before, after = Predictor(model), Predictor(tmp_path / "calibrated.onnx")

    logits = np.log(before.predict(images)) / 2.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    np.testing.assert_allclose(after.predict(images), expected, atol=1e-5)
    assert (before.temperature, after.temperature) == (1, 2.5)
    assert after.class_names == before.class_names


def test_intervals_hold_their_figures_and_shrink_with_more_images() -> None:
    rng = np.random.default_rng(0)

    def width(num_images: int) -> float:
        labels = rng.integers(2, size=num_images)
        wrong = rng.uniform(size=num_images) < 0.1
        own = np.where(wrong, 0.3, 0.8)
        probabilities = np.where(np.eye(2)[labels] == 1, own[:, None], 1 - own[:, None])
        predictions = Predictions(labels, probabilities, ["cat", "dog"])
        low, high = intervals(predictions)["accuracy"]
        assert low <= 1 - wrong.mean() <= high
        return high - low

    # Sixteen times the images, a quarter of the width.
    assert width(1600) == pytest.approx(width(100) / 4, rel=0.5)


def test_an_interval_of_few_images_without_a_mistake_is_not_certain() -> None:
    low, high = of_share(5, 5)
    # Wilson's formula by hand: 5 / (5 + 1.96^2).
    assert (low, high) == pytest.approx((5 / (5 + 1.96**2), 1), abs=1e-3)


@pytest.mark.parametrize("name", robustness.HARMS)
def test_every_harm_changes_a_picture_more_as_it_gets_stronger(name: str) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack([ramp[None, :] ^ ramp[:, None]] * 3, axis=-1)
    *_, strengths = robustness.HARMS[name]

    changes = []
    for strength in strengths:
        worse = robustness.harmed(picture, name, strength, np.random.default_rng(0))
        assert (worse.shape, worse.dtype) == (picture.shape, np.uint8)
        changes.append(np.abs(worse.astype(int) - picture).mean())

    assert 0 < changes[0] < changes[1] < changes[2]


def test_heat_maps_show_where_a_class_is_seen(tmp_path: Path) -> None:
    heat_maps = HeatMaps(onnx.load(pooled(tmp_path / "pooled.onnx")))
    image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    image[:, : IMAGE_SIZE // 2, 0] = 200

    evidence = heat_maps.evidence(image, 0)

    assert evidence[:, : IMAGE_SIZE // 2] == pytest.approx(1)
    assert not evidence[:, IMAGE_SIZE // 2 :].any()
    assert not heat_maps.evidence(image, 1).any()


def test_other_models_have_no_heat_maps(model: Path) -> None:
    with pytest.raises(NoHeatMapsError):
        HeatMaps(onnx.load(model))


def test_the_worst_mistakes_are_kept_the_surest_first(model: Path) -> None:
    rows = Rows(300)
    predictor = Predictor(model)
    expected = predict(rows, predictor)
    wrong = expected.predicted != expected.labels
    surest = np.sort(expected.probabilities.max(axis=1)[wrong])[::-1]

    examined = examine(rows, predictor, num_sampled=70)

    kept = [mistake.probabilities.max() for mistake in examined.mistakes]
    np.testing.assert_allclose(kept, surest[: len(kept)], atol=1e-6)
    assert len(kept) == min(24, wrong.sum()) > 0
    np.testing.assert_array_equal(examined.predictions.labels, rows.labels)
    np.testing.assert_array_equal(examined.sampled[0], rows.images[:70])


def test_parts_have_all_images_and_tell_what_is_worse(model: Path) -> None:
    rows = Rows(200)
    made = report(examine(rows, Predictor(model), 0), model, {"name": "m", "version": None})

    for parts in made.figures["slices"].values():
        assert sum(part["num_images"] for part in parts) == 200
        right = sum(part["num_images"] * part["accuracy"] for part in parts)
        assert right / 200 == pytest.approx(made.figures["metrics"]["accuracy"])
    assert made.figures["robustness"] == {"num_images": 0}
    # Tuples become lists, and all else is JSON already.
    assert json.dumps(json.loads(json.dumps(made.figures))) == json.dumps(made.figures)


def test_the_page_shows_it_all_and_asks_for_nothing_else(tmp_path: Path) -> None:
    path = pooled(tmp_path / "pooled.onnx")
    examined = examine(Rows(80), Predictor(path), 8)
    assert examined.mistakes
    made = report(examined, path, {"name": "mask-detector", "version": "3", "temperature": 1.2})
    page_file = tmp_path / "evaluation.html"
    page_file.write_text(html(made))

    with chromium() as page:
        page.driver.get(page_file.as_uri())
        text = page.driver.find_element("tag name", "main").text
        shown = page.driver.execute_script(
            "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        )
        asked = page.driver.execute_script(
            "return performance.getEntriesByType('resource').filter("
            "e => !e.name.startsWith('data:')).length"
        )
    accuracy = made.figures["metrics"]["accuracy"]
    assert f"{100 * accuracy:.2f}%" in text
    assert shown
    assert asked == 0
    assert page_file.read_text().count("<svg") == 4
