"""Puts the HTTP app together: all routes, and the middleware before them.

If tokens are configured, every route needs one except the page, `/docs` and the probes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from mask_ray.serving.http import api_docs, predict, web
from mask_ray.serving.http.auth import Guard, tokens_of_environment
from mask_ray.serving.http.backend import Backend, Health, ReadyBackend
from mask_ray.serving.http.errors import EXCEPTION_HANDLERS, problem_responses
from mask_ray.serving.http.hosts import TrustedHosts
from mask_ray.serving.http.middleware import AnswerHeaders, HeadRequests, on_unexpected_error
from mask_ray.serving.http.open_inference import routes
from mask_ray.serving.http.open_inference.requests import HEADER_LENGTH
from mask_ray.serving.http.remote_images import RemoteImages
from mask_ray.serving.http.request_memory import RequestMemory
from mask_ray.serving.observability.exchanges import Exchange, Exchanges
from mask_ray.serving.observability.request_ids import RequestIds
from mask_ray.serving.observability.samples import SampleLog

_EXPOSED_HEADERS = ("Retry-After", "X-Request-ID", HEADER_LENGTH)


class Live(BaseModel):
    """The process answers. The model may not be ready."""

    status: Literal["live"] = "live"


def http_app(
    backend: Backend,
    *observers: Callable[[Exchange], None],
    guard: Guard | None = None,
    samples: SampleLog | None = None,
) -> FastAPI:
    """Build the HTTP app of a replica. All its errors are made by `errors.error_response`.

    Args:
        backend: The replica.
        observers: Called with every finished request.
        guard: Who is answered; None for the tokens of this process's environment.
        samples: Log for a share of images and answers; closed with the app.

    Raises:
        TokenError: the configured tokens cannot be used.
    """
    settings = backend.settings
    app = FastAPI(
        title="mask_ray",
        summary="Image classification.",
        version=routes.API_VERSION,
        # The service has metrics and logs of its own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,
        redoc_url=None,
        # A redirect would repeat whatever host the client names.
        redirect_slashes=False,
        exception_handlers={**EXCEPTION_HANDLERS, Exception: on_unexpected_error},
        middleware=_middleware(backend, observers),
        lifespan=_lifespan,
    )
    app.state.backend = backend
    app.state.samples = samples
    app.state.guard = guard or Guard.of(settings, tokens_of_environment())
    app.state.fetch = RemoteImages(settings).fetch if settings.allowed_hosts else None
    # Not included: FastAPI would match every request on an included route twice.
    app.router.routes.extend(predict.router.routes)
    app.include_router(routes.open_router)
    app.include_router(routes.router)
    app.include_router(_health_router)
    app.router.routes.extend(web.routes() + api_docs.routes())
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    if app.state.samples is not None:
        await asyncio.to_thread(app.state.samples.close)


def _middleware(
    backend: Backend, observers: tuple[Callable[[Exchange], None], ...]
) -> list[Middleware]:
    settings = backend.settings
    middleware = [
        Middleware(RequestIds),
        Middleware(Exchanges, *observers),
        Middleware(AnswerHeaders),
        Middleware(TrustedHosts, settings.trusted_hosts),
        Middleware(RequestMemory, backend.memory),
    ]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            # Libraries add headers of their own: traceparent, X-Requested-With. Other clients than
            # browsers may send any header anyway.
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
        middleware.append(cors)
    return [*middleware, Middleware(HeadRequests)]


_health_router = APIRouter(tags=["health"])


@_health_router.get("/livez")
async def livez() -> Live:
    """Answer while the process runs. If this fails, restart it."""
    return Live()


@_health_router.get("/readyz", responses=problem_responses(503))
@_health_router.get("/healthz", responses=problem_responses(503))
async def readyz(backend: ReadyBackend) -> Health:
    """Say whether this replica can classify, and with which model. On 503, send it no requests."""
    return backend.health
