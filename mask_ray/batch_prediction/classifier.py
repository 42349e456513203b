"""The actor of a batch prediction: files in, probabilities and errors out.

A module of its own, since the imports of `batch_prediction.run` would cost each actor seconds and
about 70 MiB.
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
from mask_ray.images.decode import decode_resized
from mask_ray.images.errors import ImageError
from mask_ray.models.predictor import Predictor

# See `predictor._MAX_PIXELS_PER_RUN`: the activations of more images leave the caches of a core.
_GROUP_SIZE = 8


class BatchClassifier:
    """Reads, decodes and classifies files on one core.

    Args:
        onnx: Reference to the bytes of the model.
        reader: Reader of the files.
        done: Reference to the sorted keys of finished files; see `output.keys`.
        limits: Limits for decoding.
    """

    def __init__(self, onnx: Any, reader: ImageReader, done: Any, limits: ImageLimits) -> None:
        # Ray Data does not resolve references in constructor arguments.
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(ray.get(onnx))
            self._predictor = Predictor(path)
        self._reader = reader
        self._done = ray.get(done)
        self._limits = limits

    def __call__(self, files: pa.Table) -> dict[str, Any]:
        """Classify those of N files that are not finished yet.

        Returns:
            `path`, `error` (empty if there is none) and `probabilities` of shape (M, classes),
            M <= N, NaN if there is an error.
        """
        names = np.array(self._reader.names(files), object)
        is_left = ~is_among(names, self._done)
        contents = self._reader.contents(files.filter(pa.array(is_left)))
        size = self._predictor.image_size
        errors: list[str] = []
        rows = [np.empty((0, len(self._predictor.class_names)), np.float32)]
        while group := list(itertools.islice(contents, _GROUP_SIZE)):
            pixels = np.zeros((len(group), size, size, 3), np.uint8)
            pairs = zip(pixels, group, strict=True)
            new = [error or self._decode(image, encoded) for image, (encoded, error) in pairs]
            readable = np.array([not error for error in new])
            probabilities = np.full((len(group), rows[0].shape[1]), np.nan, np.float32)
            if readable.any():
                probabilities[readable] = self._predictor.predict(pixels[readable])
            errors += new
            rows.append(probabilities)
        error = np.array(errors, str)
        return {"path": names[is_left], "error": error, "probabilities": np.concatenate(rows)}

    def _decode(self, pixels: NDArray[np.uint8], encoded: bytes) -> str:
        """Decode into `pixels`; return the error, empty if there is none."""
        try:
            pixels[:] = decode_resized(encoded, len(pixels), self._limits)
        except ImageError as error:
            return str(error)
        return ""
