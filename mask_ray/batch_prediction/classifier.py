"""What a predictor of a batch prediction does: files in, probabilities and errors out.

Apart from `batch_prediction`, whose imports would cost each predictor seconds and some 70 MiB.
"""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mask_ray.batch_prediction.output import is_among
from mask_ray.config import ImageLimits
from mask_ray.data.sources import ImageReader
from mask_ray.images.decode import ImageError, decode_resized
from mask_ray.models.predictor import Predictor

# See `predictor._PIXELS_TOGETHER`: more activations leave the caches of a core.
_NUM_TOGETHER = 8


class BatchClassifier:
    """Reads, decodes and classifies on one core of its own.

    Args:
        onnx: Reference to the bytes of the model.
        reader: Of the files.
        done: Reference to the sorted keys of what is done already; see `prediction_parts.keys`.
        limits: Of images.
    """

    def __init__(self, onnx: Any, reader: ImageReader, done: Any, limits: ImageLimits) -> None:
        # Ray Data passes references as they are.
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(ray.get(onnx))
            self._predictor = Predictor(path)
        self._reader = reader
        self._done = ray.get(done)
        self._limits = limits

    def __call__(self, files: pa.Table) -> dict[str, Any]:
        """Classify those of N files that are not done yet.

        Returns:
            `path`, `error` (empty where there is none) and `probabilities`, of shape
            (M, classes) with M <= N, NaN where there is an error.
        """
        names = np.array(self._reader.names(files), object)
        left = ~is_among(names, self._done)
        contents = self._reader.contents(files.filter(pa.array(left)))
        size = self._predictor.image_size
        errors: list[str] = []
        rows = [np.empty((0, len(self._predictor.class_names)), np.float32)]
        while group := list(itertools.islice(contents, _NUM_TOGETHER)):
            pixels = np.zeros((len(group), size, size, 3), np.uint8)
            told = zip(pixels, group, strict=True)
            own = [error or self._decode(image, encoded) for image, (encoded, error) in told]
            readable = np.array([not error for error in own])
            probabilities = np.full((len(group), rows[0].shape[1]), np.nan, np.float32)
            if readable.any():
                probabilities[readable] = self._predictor.predict(pixels[readable])
            errors += own
            rows.append(probabilities)
        error = np.array(errors, str)
        return {"path": names[left], "error": error, "probabilities": np.concatenate(rows)}

    def _decode(self, pixels: NDArray[np.uint8], encoded: bytes) -> str:
        """Why it cannot be decoded, if so."""
        try:
            pixels[:] = decode_resized(encoded, len(pixels), self._limits)
        except ImageError as error:
            return str(error)
        return ""
