"""What is seen of a request, and the line that is logged of it."""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request

from mask_ray.serving.observability.access_log import AccessLog
from mask_ray.serving.observability.exchanges import Exchange, Exchanges, note
from mask_ray.serving.observability.request_ids import RequestIds

app = FastAPI()


@app.post("/predict/{name}")
async def predict(request: Request, name: str) -> str:
    body = await request.body()
    note(request.scope, model_version="3")
    return "x" * len(body)


@app.get("/refused")
async def refused() -> None:
    raise HTTPException(429)


@app.get("/broken")
async def broken() -> None:
    raise ZeroDivisionError


@app.get("/forever")
async def forever() -> None:
    await asyncio.Event().wait()


Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def lines_of(ask: Ask) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "logs", "access.log")
        watched = RequestIds(Exchanges(app, AccessLog(path)))

        async def send() -> None:
            transport = httpx.ASGITransport(watched, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                await ask(client)

        asyncio.run(send())
        return [json.loads(line) for line in path.read_text().splitlines()]


def line_of(ask: Ask) -> dict[str, Any]:
    (line,) = lines_of(ask)
    return line


def test_a_request_is_one_line() -> None:
    line = line_of(
        lambda client: client.post(
            "/predict/face?token=secret",
            content=b"image",
            headers={
                "Authorization": "Bearer secret",
                "X-Request-ID": "mine",
                "X-Forwarded-For": "203.0.113.7",
            },
        )
    )

    came = datetime.fromisoformat(line.pop("time"))
    assert timedelta() <= datetime.now(UTC) - came < timedelta(seconds=60)
    assert 0 < line.pop("duration_ms") < 60_000
    assert line == {
        "request_id": "mine",
        "method": "POST",
        "path": "/predict/face",
        "status": 200,
        "bytes_in": 5,
        "bytes_out": 7,
        "client": "127.0.0.1",
        "forwarded_for": "203.0.113.7",
        "model_version": "3",
    }


@pytest.mark.parametrize(
    ("path", "status"), [("/refused", 429), ("/broken", 500), ("/missing", 404)]
)
def test_failures_are_logged_with_their_status(path: str, status: int) -> None:
    assert line_of(lambda client: client.get(path))["status"] == status


def test_a_client_that_leaves_is_logged_as_499() -> None:
    async def leave(client: httpx.AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("/forever")

    assert line_of(leave)["status"] == 499


def test_nothing_in_a_path_can_forge_a_line() -> None:
    line = line_of(lambda client: client.get('/a%0A{"status":200}%1b[31m%E2%80%A8'))

    assert line["path"] == '/a\n{"status":200}\x1b[31m\u2028'
    assert line["status"] == 404


def test_long_paths_are_cut() -> None:
    assert len(line_of(lambda client: client.get("/" + "a" * 5000))["path"]) == 256


def test_concurrent_requests_keep_their_own_notes() -> None:
    async def ask_three(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(client.post("/predict/a", content=b"x" * n) for n in (1, 20, 300)))

    lines = lines_of(ask_three)

    assert sorted((line["bytes_in"], line["bytes_out"]) for line in lines) == [
        (1, 3),
        (20, 22),
        (300, 302),
    ]
    assert len({line["request_id"] for line in lines}) == 3


def endpoint_of(path: str, method: str = "GET") -> str:
    seen: list[Exchange] = []
    watched = RequestIds(Exchanges(app, seen.append))

    async def send() -> None:
        transport = httpx.ASGITransport(watched, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.request(method, path)

    asyncio.run(send())
    (exchange,) = seen
    return exchange.endpoint


def test_endpoints_are_as_many_as_routes_whatever_is_asked_for() -> None:
    assert endpoint_of("/predict/face", "POST") == "/predict/{name}"
    assert endpoint_of("/predict/other", "POST") == "/predict/{name}"
    assert endpoint_of("/missing") == endpoint_of("/wp-login.php") == "other"


def test_notes_without_a_watcher_do_nothing() -> None:
    scope: dict[str, Any] = {"type": "http"}
    note(scope, model_version="3")
    assert scope == {"type": "http"}
