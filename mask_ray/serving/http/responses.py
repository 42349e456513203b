"""What the endpoint answers about images, and which model it was.

Nothing here knows of HTTP, models or Ray.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

UNCERTAIN = "uncertain"

# Digits after the point. float32 has about seven.
_NUM_DIGITS = 6


class ModelInfo(BaseModel):
    """The model that answers. A model served from a file has no version."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None


class Prediction(BaseModel):
    """The likeliest class of one image, and the probability of each.

    `label` is `uncertain` where `probability`, which is that of the likeliest class, is below the
    threshold that the request gave.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    model: ModelInfo


@dataclass(frozen=True)
class Classified:
    """What one model makes of the N images of a request, in their order.

    Attributes:
        model: The model that answered, all of them.
        class_names: Its C classes.
        probabilities: Shape (N, C), each row in 0..1 and summing to 1.
    """

    model: ModelInfo
    class_names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]


def predictions(
    classified: Classified, top_k: int | None = None, threshold: float | None = None
) -> list[Prediction]:
    """One prediction for each image, in order.

    With `top_k` only as many classes are told, the likeliest first; otherwise all, in the model's
    order.
    """
    return [
        _prediction(classified, row.tolist(), top_k, threshold) for row in classified.probabilities
    ]


def _prediction(
    classified: Classified, row: list[float], top_k: int | None, threshold: float | None
) -> Prediction:
    # Rounded before anything is compared, or an answer could contradict itself.
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
