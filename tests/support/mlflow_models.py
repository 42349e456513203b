"""A registered model: the tiny classifier of `onnx_files`, and a file that stands for Keras's."""

from pathlib import Path
from typing import Any

import numpy as np

from mask_ray.models.predictor import Predictor
from mask_ray.tracking import RegisteredModel, Run
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier

NAME = "mask-detector"
METADATA = {"class_names": list(CLASS_NAMES), "image_size": IMAGE_SIZE, "git_commit": "abc"}
EXAMPLE = np.random.default_rng(2).integers(0, 256, (1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def register(
    run: Run, folder: Path, onnx_path: Path | None = None, *, champion: bool = True, **given: Any
) -> str:
    onnx_path = onnx_path or write_classifier(folder / "model.onnx")
    keras_path = folder / "model.keras"
    keras_path.write_bytes(b"the same model for Keras")
    example = given.get("example", EXAMPLE)
    options = {
        "name": NAME,
        "example": example,
        "probabilities": Predictor(onnx_path).predict(example),
        "metadata": METADATA,
        "keras_path": keras_path,
    }
    version = run.register_model(onnx_path, **options | given)
    if champion:
        model = RegisteredModel(NAME)
        model.set_alias("champion", version)
        model.set_alias("challenger", None)
    return version
