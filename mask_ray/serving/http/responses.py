"""The predictions that the service answers with. No HTTP, models or Ray here."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

UNCERTAIN = "uncertain"

# Digits after the point. float32 has about seven.
_NUM_DIGITS = 6


class ModelInfo(BaseModel):
    """The model that answered. A model served from a file has no version."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None


class Prediction(BaseModel):
    """The most likely class of one image, and the probabilities of classes.

    `probability` is that of the most likely class. If it is below the request's threshold, `label`
    is `uncertain`.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    model: ModelInfo


@dataclass(frozen=True)
class Classified:
    """The answer of one model to the N images of a request, in their order.

    Attributes:
        model: The model that answered.
        class_names: Its C classes.
        probabilities: Shape (N, C), each row in 0..1 and summing to 1.
    """

    model: ModelInfo
    class_names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]


def predictions(
    classified: Classified, top_k: int | None = None, threshold: float | None = None
) -> list[Prediction]:
    """Make one prediction for each image, in order.

    Args:
        classified: The model's answer.
        top_k: How many classes to return, the most likely first; None: all, in the model's order.
        threshold: Probability below which the label is `uncertain`.
    """
    return [
        _prediction(classified, row.tolist(), top_k, threshold) for row in classified.probabilities
    ]


def _prediction(
    classified: Classified, row: list[float], top_k: int | None, threshold: float | None
) -> Prediction:
    # Rounded before comparing, or an answer could contradict itself.
    rounded = (round(probability, _NUM_DIGITS) for probability in row)
    probabilities = dict(zip(classified.class_names, rounded, strict=True))
    label = max(probabilities, key=probabilities.__getitem__)
    probability = probabilities[label]
    if top_k is not None:
        likeliest = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
        probabilities = {name: probabilities[name] for name in likeliest[:top_k]}
    return Prediction(
        label=UNCERTAIN if threshold is not None and probability < threshold else label,
        probability=probability,
        probabilities=probabilities,
        model=classified.model,
    )
