"""Predict labelled images, and compute metrics and figures from the predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from ray.data import Dataset
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    RocCurveDisplay,
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from mask_ray import data
from mask_ray.evaluation.charts import plain
from mask_ray.models.predictor import Predictor, Probabilities

BATCH_SIZE = 64

# Classes that one line names.
_NUM_NAMED = 5


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on labelled images.

    Args:
        labels: True class of each image, shape (N,).
        probabilities: Shape (N, classes), float64; rows sum to 1.
        class_names: Name of each class.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    class_names: list[str]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class of each image, shape (N,)."""
        return np.argmax(self.probabilities, axis=1).astype(np.int64)


def predict(
    dataset: Dataset,
    predictor: Predictor,
    on_batch: Callable[[data.Batch, Probabilities], None] = lambda batch, probabilities: None,
) -> Predictions:
    """Run the model over rows `image` (uint8, (S, S, 3)) and `label`.

    Args:
        dataset: Rows to predict.
        predictor: The model.
        on_batch: Called with each batch and its probabilities.

    Raises:
        data.DataError: the dataset has no rows.
    """
    labels, probabilities = [], []
    for batch in dataset.iter_batches(batch_size=BATCH_SIZE):
        labels.append(batch["label"])
        probabilities.append(predictor.predict(batch["image"]))
        on_batch(batch, probabilities[-1])
    if not labels:
        raise data.DataError("there are no images to evaluate on")
    # float32 rows sum to 1 only to seven digits; log_loss warns about that.
    scores = np.concatenate(probabilities).astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    return Predictions(np.concatenate(labels), scores, list(predictor.class_names))


def compute_metrics(predictions: Predictions) -> dict[str, Any]:
    """Compute accuracy, log loss (nats), ROC AUC, and precision, recall and F1 by class.

    With more than two classes, ROC AUC is the mean over classes, each against the rest.
    Definitions: https://scikit-learn.org/stable/modules/model_evaluation.html.
    """
    labels, names = predictions.labels, predictions.class_names
    classes = range(len(names))
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions.predicted, labels=classes, zero_division=0.0
    )
    by_class = {"precision": precision, "recall": recall, "f1": f1}
    return {
        "num_images": len(labels),
        "accuracy": float(accuracy_score(labels, predictions.predicted)),
        "log_loss": float(log_loss(labels, predictions.probabilities, labels=classes)),
        "roc_auc": _roc_auc(predictions),
    } | {
        metric: {name: float(value) for name, value in zip(names, values, strict=True)}
        for metric, values in by_class.items()
    }


def unrecognised(predictions: Predictions) -> str | None:
    """Return a line that names classes whose images are all classified wrongly, if any."""
    labels = predictions.labels
    num_images = np.bincount(labels, minlength=len(predictions.class_names))
    right = labels[labels == predictions.predicted]
    num_right = np.bincount(right, minlength=len(predictions.class_names))
    missed = np.flatnonzero((num_images > 0) & (num_right == 0)).tolist()
    if not missed:
        return None
    names = [f"{predictions.class_names[i]} (0 of {num_images[i]})" for i in missed]
    more = f", and of {len(names) - _NUM_NAMED} more classes" if len(names) > _NUM_NAMED else ""
    return f"no image is recognised of {', '.join(names[:_NUM_NAMED])}{more}"


def _roc_auc(predictions: Predictions) -> float | None:
    """Return None if some class has no images, which leaves it undefined."""
    labels, probabilities = predictions.labels, predictions.probabilities
    if len(np.unique(labels)) < len(predictions.class_names):
        return None
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return float(roc_auc_score(labels, scores, multi_class="ovr"))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Join nested names for trackers: `recall` of `a` becomes `recall_a`; None is left out."""
    flat: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}_")
        elif value is not None:
            flat[f"{prefix}{key}"] = float(value)
    return flat


def confusion_matrix_figure(predictions: Predictions) -> Figure:
    """Draw counts by true class (rows) and predicted class (columns)."""
    names = predictions.class_names
    counts = confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(names)))
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(counts, display_labels=[plain(name) for name in names]).plot(
        ax=axes, cmap="Blues", colorbar=False, values_format="d"
    )
    axes.set_title(f"{predictions.labels.size} images")
    return figure


def roc_figure(predictions: Predictions) -> Figure:
    """Draw the ROC curve of each class against the rest."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(predictions.class_names):
        positive = predictions.labels == index
        if positive.any() and not positive.all():
            scores = predictions.probabilities[:, index]
            RocCurveDisplay.from_predictions(positive, scores, name=plain(name), ax=axes)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.set(title="ROC, each class against the rest", xlabel="False positive rate")
    axes.set_ylabel("True positive rate")
    axes.legend(loc="lower right")
    return figure
