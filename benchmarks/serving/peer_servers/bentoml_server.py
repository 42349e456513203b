"""BentoML with its own adaptive batching: `bentoml serve bentoml_server:Images`.

The image comes as a file of a form, which BentoML opens with Pillow.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from classifier import Classifier
from PIL.Image import Image


@bentoml.service(traffic={"timeout": 60, "max_concurrency": 256})
class Images:
    """One worker with a thread of ONNX Runtime for each core."""

    def __init__(self) -> None:
        self._classifier = Classifier(Path(os.environ["MODEL"]), int(os.environ["CORES"]))

    @bentoml.api(route="/predict", batchable=True, max_batch_size=16, max_latency_ms=10_000)
    def predict(self, images: list[Image]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self._classifier.predict(
            np.stack([self._classifier.to_input(image) for image in images])
        )
