"""One sane X-Request-ID for a request, all that see it, and its answer."""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from mask_ray.serving.observability.request_ids import RequestIds, request_id


async def serve_like(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the id that it finds, and adds a header of its own as Serve does."""
    found = request_id(scope)
    await PlainTextResponse(found, headers={"X-Request-ID": found})(scope, receive, send)


def ask(*given: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(RequestIds(serve_like))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(
                "/", headers=[(b"X-Request-ID", value.encode("latin-1")) for value in given]
            )

    return asyncio.run(send())


@pytest.mark.parametrize(
    "given", ["7", "0af7651916cd43dd8448eb211c80319c", "web-1:a/b+c=", "x" * 128]
)
def test_a_sane_id_is_kept(given: str) -> None:
    answer = ask(given)

    assert answer.text == given
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize(
    "given", [(), ("",), ("two words",), ('"},{"',), ("x" * 129,), ("naïve",), ("one", "two")]
)
def test_another_is_replaced_and_a_missing_one_made(given: tuple[str, ...]) -> None:
    first, second = ask(*given), ask(*given)

    assert first.headers.get_list("x-request-id") == [first.text]
    assert len(first.text) == 32 and int(first.text, 16)
    assert first.text not in given
    assert first.text != second.text
