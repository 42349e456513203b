"""A classifier behind the HTTP app without Ray: one process, no batches."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.types import ASGIApp

from mask_ray.config import ServeSettings
from mask_ray.images.decode import RGBArray, decode_resized, resize
from mask_ray.images.errors import ImageError
from mask_ray.models.predictor import Predictor
from mask_ray.serving.http.backend import Health
from mask_ray.serving.http.responses import Classified, ModelInfo
from mask_ray.serving.memory import MemoryBudget


class LocalBackend:
    def __init__(self, path: Path, **settings: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.predictor = Predictor(path)
        self.model = ModelInfo(name=path.stem, version=None)
        self.class_names = self.predictor.class_names
        self.is_ready = True
        self.memory = MemoryBudget(self.settings.request_memory_bytes)
        self.health = Health(model=self.model)

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        pixels = [self.decode(index, image) for index, image in enumerate(images)]
        return Classified(self.model, self.class_names, self.predictor.predict(np.stack(pixels)))

    def decode(self, index: int, image: bytes | RGBArray) -> RGBArray:
        if not isinstance(image, bytes):
            return resize(image, self.predictor.image_size)
        try:
            return decode_resized(image, self.predictor.image_size, self.settings)
        except ImageError as error:
            raise type(error)(f"images[{index}]: {error}") from None

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)


def request(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """What an app answers, without a server."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())
