"""What the HTTP side asks of a replica, and how its routes get at it."""

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

P = ParamSpec("P")
T = TypeVar("T")


class RefusedVersion(BaseModel):
    """A version that an alias names and that does not answer, and why."""

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
    """A model that classifies, and threads to work in."""

    @property
    def settings(self) -> ServeSettings:
        """How the service is configured."""

    @property
    def is_ready(self) -> bool:
        """Whether a model is loaded, and could classify when that was last tried."""

    @property
    def model(self) -> ModelInfo:
        """The model that answers now."""

    @property
    def health(self) -> Health:
        """What is served, and what is not."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes."""

    async def classify(self, images: Sequence[bytes | RGBArray]) -> Classified:
        """Classify the encoded or decoded images of one request, all with one model.

        Raises:
            ImageError: one of them cannot be decoded. Of several the message names it, as
                `images[3]: ...`.
        """

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what would hold up the event loop in a thread beside those that classify."""


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def ready_backend(request: Request) -> Backend:
    """The backend of the app, for routes that need its model.

    Raises:
        HTTPException: 503, it is not ready.
    """
    backend: Backend = request.app.state.backend
    if not backend.is_ready:
        raise not_ready()
    return backend


# Not sync functions, which FastAPI would call in a thread, for every request.
AnyBackend = Annotated[Backend, Depends(_backend)]
ReadyBackend = Annotated[Backend, Depends(ready_backend)]


async def arrive(coming: Awaitable[T], backend: Backend) -> T:
    """What a client sends.

    Raises:
        HTTPException: 408, it does not come in time.
    """
    timeout_s = backend.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await coming
    except TimeoutError:
        detail = f"The request did not arrive within {timeout_s:g} s."
        # RFC 9110, section 15.5.9: what still comes is of no use.
        raise HTTPException(408, detail, {"Connection": "close"}) from None


async def answer(coming: Awaitable[T], backend: Backend) -> T:
    """What the replica makes of it.

    Raises:
        HTTPException: 504, it takes too long.
    """
    timeout_s = backend.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await coming
    except TimeoutError:
        raise HTTPException(504, f"There was no answer within {timeout_s:g} s.") from None
