"""FastAPI and ONNX Runtime alone: decoding and inference in a thread pool, one image a call."""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from classifier import Classifier
from fastapi import FastAPI, Request


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    arguments = parser.parse_args()
    app = _app(Classifier(arguments.model, arguments.cores), arguments.cores)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


def _app(classifier: Classifier, num_cores: int) -> FastAPI:
    app = FastAPI()
    pool = ThreadPoolExecutor(num_cores)

    def classify(encoded: bytes) -> dict[str, Any]:
        return classifier.predict(classifier.decode(encoded)[None])[0]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        encoded = await request.body()
        return await asyncio.get_running_loop().run_in_executor(pool, classify, encoded)

    return app


if __name__ == "__main__":
    main()
