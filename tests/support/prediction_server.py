"""An HTTP server that answers `POST /predict` with given answers, with the page before it.

It speaks the endpoint's contract without a model, for tests of what asks: the page, the client.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mask_ray.serving.http import web
from tests.support.polling import wait_until

PREDICTION = {
    "label": "with_mask",
    "probability": 0.994,
    "probabilities": {"with_mask": 0.994, "without_mask": 0.006},
    "model": {"name": "mask-detector", "version": "3"},
}


def prediction(**changes: Any) -> Response:
    return JSONResponse(PREDICTION | changes)


def problem(status: int, detail: str = "why", **headers: str) -> Response:
    body = {"type": "about:blank", "title": "Title", "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def busy(retry_after: str = "1") -> Response:
    return problem(429, "All replicas are busy.", **{"Retry-After": retry_after})


@dataclass
class Received:
    """One request, and when it came (monotonic seconds)."""

    body: bytes
    headers: dict[str, str]
    query: str
    at_s: float


@dataclass
class PredictionServer:
    """What the server does next.

    Attributes:
        answers: By body, what to answer one time after the other; the last one stays. Other
            bodies get `default`.
        token: The bearer token without which everything is a 401.
        held: Which bodies have no answer until `released` is set.
        most_at_once: The most requests that were open at a time.
    """

    url: str = ""
    answers: dict[bytes, list[Response]] = field(default_factory=dict)
    default: Callable[[], Response] = prediction
    token: str | None = None
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    held: Callable[[bytes], bool] = lambda body: False
    _num_open: int = 0

    async def predict(self, request: Request) -> Response:
        self._num_open += 1
        self.most_at_once = max(self.most_at_once, self._num_open)
        try:
            return await self._answer(request)
        finally:
            self._num_open -= 1

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.received.append(
            Received(body, dict(request.headers), request.url.query, time.monotonic())
        )
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return problem(401, "A bearer token is needed.")
        if self.held(body):
            await asyncio.to_thread(self.released.wait)
        scripted = self.answers.get(body)
        if not scripted:
            return self.default()
        return scripted.pop(0) if len(scripted) > 1 else scripted[0]

    @property
    def bodies(self) -> list[bytes]:
        return [received.body for received in self.received]


@contextlib.contextmanager
def prediction_server() -> Iterator[PredictionServer]:
    """A server on a free port of 127.0.0.1."""
    stub = PredictionServer()
    routes = [*web.routes(), Route("/predict", stub.predict, methods=["POST"])]
    with running(Starlette(routes=routes)) as url:
        stub.url = url
        try:
            yield stub
        finally:
            stub.released.set()


@contextlib.contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The URL of an app on a free port of 127.0.0.1."""
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "uvicorn", every_s=0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
