"""Pillow and ONNX Runtime as one would write them: what the peers have in common."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image


class Classifier:
    """The model file, and the pixels that it takes."""

    def __init__(self, path: Path, num_threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._class_names = json.loads(metadata["class_names"])
        self._image_size = int(metadata["image_size"])

    def decode(self, encoded: bytes) -> NDArray[np.uint8]:
        """RGB of shape (image_size, image_size, 3)."""
        return self.to_input(Image.open(io.BytesIO(encoded)))

    def to_input(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB of shape (image_size, image_size, 3)."""
        size = (self._image_size, self._image_size)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))

    def predict(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The answer to each image of a batch."""
        (rows,) = self._session.run(["probabilities"], {"image": images})
        return [self._answer(row) for row in rows.tolist()]

    def _answer(self, row: list[float]) -> dict[str, Any]:
        probabilities = dict(zip(self._class_names, row, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return {
            "label": label,
            "probability": probabilities[label],
            "probabilities": probabilities,
        }
