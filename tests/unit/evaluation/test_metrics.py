"""Metrics against numbers worked out by hand, and figures that show them."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from mask_ray.data import DataError
from mask_ray.evaluation import (
    Predictions,
    compute_metrics,
    confusion_matrix_figure,
    flatten,
    predict,
    roc_figure,
    unrecognised,
)
from mask_ray.evaluation.metrics import BATCH_SIZE
from tests.support.row_batches import InMemory

METRICS_BY_CLASS = ("precision", "recall", "f1")


def predictions(labels: list[int], probabilities: list[list[float]]) -> Predictions:
    names = ["cat", "dog", "fox"][: len(probabilities[0])]
    return Predictions(np.array(labels), np.array(probabilities), names)


# Of three cats two are found, of two dogs one. The dogs' scores 0.9 and 0.4 beat the cats' 0.2,
# 0.3 and 0.6 in 5 of 6 pairs.
TWO_CLASSES = predictions(
    [0, 0, 0, 1, 1], [[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.6, 0.4]]
)

# One of two cats is taken for a dog. The cats' scores beat the others' in 4 of 4 pairs, the dog's
# 0.5 in 2 of 3, the fox's in 3 of 3.
THREE_CLASSES = predictions(
    [0, 0, 1, 2], [[0.5, 0.25, 0.25], [0.35, 0.55, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]
)


def test_metrics_of_two_classes() -> None:
    measured = compute_metrics(TWO_CLASSES)

    assert measured["num_images"] == 5
    assert measured["accuracy"] == pytest.approx(3 / 5)
    assert measured["precision"] == pytest.approx({"cat": 2 / 3, "dog": 1 / 2})
    assert measured["recall"] == pytest.approx({"cat": 2 / 3, "dog": 1 / 2})
    assert measured["f1"] == pytest.approx({"cat": 2 / 3, "dog": 1 / 2})
    assert measured["roc_auc"] == pytest.approx(5 / 6)
    assert measured["log_loss"] == pytest.approx(-math.log(0.8 * 0.7 * 0.4 * 0.9 * 0.4) / 5)


def test_classes_without_a_right_answer_are_named_with_their_images() -> None:
    # Both dogs are taken for cats. There is no fox, so nothing is known of foxes.
    cats_alone = predictions([0, 1, 1], [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.8, 0.1, 0.1]])
    assert unrecognised(cats_alone) == "no image is recognised of dog (0 of 2)"
    assert unrecognised(TWO_CLASSES) is None


def test_of_many_such_classes_some_are_named() -> None:
    names = [f"class {number}" for number in range(8)]
    always_first = Predictions(np.arange(8), np.eye(8)[np.zeros(8, int)], names)
    line = unrecognised(always_first)
    assert line is not None
    assert line.startswith("no image is recognised of class 1 (0 of 1), class 2 (0 of 1), ")
    assert line.endswith("class 5 (0 of 1), and of 2 more classes")


def test_metrics_of_three_classes() -> None:
    measured = compute_metrics(THREE_CLASSES)

    assert measured["num_images"] == 4
    assert measured["accuracy"] == pytest.approx(3 / 4)
    assert measured["precision"] == pytest.approx({"cat": 1, "dog": 1 / 2, "fox": 1})
    assert measured["recall"] == pytest.approx({"cat": 1 / 2, "dog": 1, "fox": 1})
    assert measured["f1"] == pytest.approx({"cat": 2 / 3, "dog": 2 / 3, "fox": 1})
    assert measured["roc_auc"] == pytest.approx((4 / 4 + 2 / 3 + 3 / 3) / 3)
    assert measured["log_loss"] == pytest.approx(-math.log(0.5 * 0.35 * 0.5 * 0.8) / 4)


def test_perfect_predictions_have_perfect_metrics() -> None:
    measured = compute_metrics(predictions([0, 1], [[1.0, 0.0], [0.0, 1.0]]))

    assert flatten(measured) == pytest.approx(
        {"num_images": 2, "accuracy": 1, "log_loss": 0, "roc_auc": 1}
        | {f"{name}_{animal}": 1 for name in METRICS_BY_CLASS for animal in ("cat", "dog")}
    )


def test_a_class_without_images_has_no_roc_auc_and_zero_recall() -> None:
    measured = compute_metrics(predictions([0, 0], [[0.8, 0.2], [0.6, 0.4]]))

    assert measured["roc_auc"] is None
    assert measured["accuracy"] == 1
    assert measured["recall"] == {"cat": 1, "dog": 0}
    assert measured["log_loss"] == pytest.approx(-math.log(0.8 * 0.6) / 2)


def test_metrics_are_plain_json() -> None:
    measured = compute_metrics(TWO_CLASSES)
    assert json.loads(json.dumps(measured)) == measured


def test_flatten_joins_names_and_leaves_out_what_is_undefined() -> None:
    nested = {"accuracy": 0.5, "recall": {"cat": 1, "dog": 0.25}, "roc_auc": None}

    assert flatten(nested, "test_") == {
        "test_accuracy": 0.5,
        "test_recall_cat": 1.0,
        "test_recall_dog": 0.25,
    }


class StubPredictor:
    """Says of an image what its first two values are; remembers how many it saw at once."""

    class_names = ("cat", "dog")

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.batch_sizes.append(len(images))
        return images[:, 0, 0, :2].astype(np.float32) / 100


def cats_in_percent(percents: np.ndarray) -> np.ndarray:
    """Images of 2 x 2 px which the stub takes for a cat with this probability."""
    images = np.zeros((len(percents), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = percents
    images[:, 0, 0, 1] = 100 - percents
    return images


def test_every_image_is_predicted_in_order_the_last_partial_batch_too() -> None:
    percents = np.arange(2 * BATCH_SIZE + 3) % 101
    labels = (percents % 2).astype(np.int64)
    predictor = StubPredictor()

    predicted = predict(InMemory(image=cats_in_percent(percents), label=labels), predictor)

    assert predictor.batch_sizes == [BATCH_SIZE, BATCH_SIZE, 3]
    np.testing.assert_array_equal(predicted.labels, labels)
    np.testing.assert_allclose(predicted.probabilities[:, 0], percents / 100, atol=1e-6)
    np.testing.assert_array_equal(predicted.predicted, percents < 50)
    assert predicted.class_names == ["cat", "dog"]


def test_probabilities_sum_to_one_in_double_precision() -> None:
    images = InMemory(image=cats_in_percent(np.arange(9)), label=np.zeros(9, int))
    predicted = predict(images, StubPredictor())

    assert predicted.probabilities.dtype == np.float64
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1, rtol=1e-15)


def test_no_images_cannot_be_evaluated() -> None:
    nothing = InMemory(image=cats_in_percent(np.arange(0)), label=np.zeros(0, int))
    with pytest.raises(DataError, match="no images to evaluate on"):
        predict(nothing, StubPredictor())


def test_the_confusion_matrix_shows_counts_by_true_and_predicted_class() -> None:
    figure = confusion_matrix_figure(THREE_CLASSES)

    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1", "1", "0", "0", "1", "0", "0", "0", "1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "fox"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("True label", "Predicted label")
    assert axes.get_title() == "4 images"


def legend_of(axes: Axes) -> Legend:
    legend = axes.get_legend()
    assert legend is not None
    return legend


def test_the_roc_figure_has_a_curve_of_each_class_with_its_area() -> None:
    figure = roc_figure(THREE_CLASSES)

    (axes,) = figure.axes
    assert [text.get_text() for text in legend_of(axes).get_texts()] == [
        "cat (AUC = 1.00)",
        "dog (AUC = 0.67)",
        "fox (AUC = 1.00)",
        "chance",
    ]
    dog = axes.get_lines()[1]
    np.testing.assert_allclose(dog.get_xdata(), [0, 1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(dog.get_ydata(), [0, 0, 1, 1])


def test_the_roc_figure_leaves_out_a_class_without_images() -> None:
    missing = predictions([0, 1], [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    (axes,) = roc_figure(missing).axes
    labels = [text.get_text().partition(" ")[0] for text in legend_of(axes).get_texts()]
    assert labels == ["cat", "dog", "chance"]


@pytest.mark.parametrize("draw", [confusion_matrix_figure, roc_figure])
def test_figures_can_be_saved(draw: Callable[[Predictions], Figure], tmp_path: Path) -> None:
    draw(TWO_CLASSES).savefig(tmp_path / "figure.png")

    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 300
    assert (pixels < 128).mean() > 0.005


@pytest.mark.parametrize("draw", [confusion_matrix_figure, roc_figure])
def test_figures_show_class_names_as_they_are(draw: Callable[[Predictions], Figure]) -> None:
    names = ["under_$5_$", r"$\frac{", "_other"]
    figure = draw(Predictions(THREE_CLASSES.labels, THREE_CLASSES.probabilities, names))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    (axes,) = figure.axes
    legend = axes.get_legend()
    texts = legend.get_texts() if legend else axes.get_xticklabels()
    shown = [text.get_text().replace(r"\$", "$").lstrip("\u200b") for text in texts]
    assert all(any(text.startswith(name) for text in shown) for name in names)
