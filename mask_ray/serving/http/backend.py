"""The interface between HTTP routes and the replica, and time limits of a request."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, ParamSpec, Protocol, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mask_ray.config import ServeSettings
from mask_ray.images.decode import RGBArray
from mask_ray.serving.http.errors import not_ready
from mask_ray.serving.http.responses import Classified, ModelInfo
from mask_ray.serving.memory import MemoryBudget

P = ParamSpec("P")
T = TypeVar("T")


class RefusedVersion(BaseModel):
    """A rejected version that an alias names, and why it is not served."""

    alias: str
    version: str
    reason: str


class Health(BaseModel):
    """The replica has a model and can classify."""

    status: Literal["ready"] = "ready"
    model: ModelInfo
    challenger: ModelInfo | None = None
    refused: list[RefusedVersion] = []


class Backend(Protocol):
    """A replica: a model that classifies, and threads for other work."""

    @property
    def settings(self) -> ServeSettings:
        """Settings of the service."""

    @property
    def memory(self) -> MemoryBudget:
        """The memory that all requests share."""

    @property
    def is_ready(self) -> bool:
        """Whether the last trial inference succeeded."""

    @property
    def model(self) -> ModelInfo:
        """The current champion."""

    @property
    def health(self) -> Health:
        """The served models and the rejected versions."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the current champion."""

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        """Classify the encoded or decoded images of one request, all with one model.

        Raises:
            ImageError: an image cannot be decoded. If there are several, the message names it:
                `images[3]: ...`.
            OverBudgetError: too much waits already.
        """

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a slow function in a thread, off the event loop and beside those that classify."""


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def ready_backend(request: Request) -> Backend:
    """Dependency of routes that need the model: the app's backend.

    Raises:
        HTTPException: 503, the model is not ready.
    """
    backend: Backend = request.app.state.backend
    if not backend.is_ready:
        raise not_ready()
    return backend


# The functions are async because FastAPI would call sync ones in a thread for every request.
AnyBackend = Annotated[Backend, Depends(_backend)]
ReadyBackend = Annotated[Backend, Depends(ready_backend)]


async def in_time_or_408(request: Awaitable[T], backend: Backend) -> T:
    """Await the request body; 408 on timeout.

    Raises:
        HTTPException: 408, it did not arrive within `request_timeout_s`.
    """
    timeout_s = backend.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await request
    except TimeoutError:
        detail = f"The request did not arrive within {timeout_s:g} s."
        # RFC 9110, section 15.5.9: close the connection, since the rest of the body is useless.
        raise HTTPException(408, detail, {"Connection": "close"}) from None


async def in_time_or_504(answer: Awaitable[T], backend: Backend) -> T:
    """Await the replica's answer; 504 on timeout.

    Raises:
        HTTPException: 504, there was none within `request_timeout_s`.
    """
    timeout_s = backend.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError:
        raise HTTPException(504, f"There was no answer within {timeout_s:g} s.") from None
