"""The way of the demo that this project re-creates: `keras.predict`, one image a call."""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file")
    parser.add_argument("--class-names", type=json.loads, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = _app(keras.saving.load_model(arguments.model), arguments.class_names)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


def _app(model: keras.Model, class_names: list[str]) -> FastAPI:
    app = FastAPI()
    size = model.input_shape[1:3]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        image = Image.open(io.BytesIO(await request.body())).convert("RGB")
        image = image.resize(size, Image.Resampling.BILINEAR)
        (row,) = model.predict(np.asarray(image)[None], verbose=0)
        probabilities = dict(zip(class_names, row.tolist(), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return {
            "label": label,
            "probability": probabilities[label],
            "probabilities": probabilities,
        }

    return app


if __name__ == "__main__":
    main()
