"""LitServe with its own batching.

It reads requests as JSON or as forms, so the image comes in base64, as in its documentation.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
from classifier import Classifier
from numpy.typing import NDArray

_BATCH_TIMEOUT_S = 0.005


class ImageAPI(ls.LitAPI):
    """LitServe's five verbs."""

    def __init__(self, model: Path, num_threads: int, **options: Any) -> None:
        super().__init__(**options)
        self._model, self._num_threads = model, num_threads

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self._classifier = Classifier(self._model, self._num_threads)

    def decode_request(self, request: dict[str, str]) -> NDArray[np.uint8]:
        """Base64 to pixels."""
        return self._classifier.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One array."""
        return np.stack(inputs)

    def predict(self, x: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self._classifier.predict(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """They are apart already."""
        return output


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    arguments = parser.parse_args()
    api = ImageAPI(
        arguments.model, arguments.cores, max_batch_size=16, batch_timeout=_BATCH_TIMEOUT_S
    )
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main()
