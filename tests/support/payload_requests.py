"""Requests with images, handed to the reader of payloads chunk by chunk."""

import asyncio
import base64
import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.limits import PayloadError
from mask_ray.serving.http.payloads import FetchImage, Payload, read_images

SMALL = {"max_image_bytes": 10, "max_total_bytes": 25, "max_images": 3}


class Sent:
    """A request as a server hands it on, in chunks that are counted as they are taken."""

    def __init__(self, headers: Iterable[tuple[str, str]], chunks: Iterable[bytes]) -> None:
        self.num_taken = 0
        self._chunks = iter(chunks)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        self.request = Request({"type": "http", "headers": raw}, self._receive)

    async def _receive(self) -> Message:
        chunk = next(self._chunks, None)
        self.num_taken += chunk is not None
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}


def in_chunks(body: bytes, num_bytes: int) -> list[bytes]:
    return [body[at : at + num_bytes] for at in range(0, len(body), num_bytes)]


def sent(chunk_bytes: int = 7, **options: Any) -> Sent:
    """A request as httpx would send it."""
    made = httpx.Request("POST", "http://test", **options)
    return Sent(made.headers.items(), in_chunks(made.read(), chunk_bytes))


def sent_json(document: Any, chunk_bytes: int = 7) -> Sent:
    headers = {"content-type": "application/json"}
    return sent(chunk_bytes, content=json.dumps(document).encode(), headers=headers)


def read(
    what: Sent | Any, fetch: FetchImage | None = None, limits: dict[str, int] | None = None
) -> Payload:
    """Read what was sent; anything but a request is sent as JSON."""
    received = what if isinstance(what, Sent) else sent_json(what)
    return asyncio.run(
        read_images(received.request, PayloadLimits.model_validate(limits or {}), fetch)
    )


def refusal(
    what: Sent | Any, fetch: FetchImage | None = None, limits: dict[str, int] | None = None
) -> tuple[int, str]:
    with pytest.raises(PayloadError) as caught:
        read(what, fetch, limits)
    return caught.value.status, str(caught.value)


def form(*files: tuple[str, bytes], **options: Any) -> Sent:
    """A form of files: name of the field and content of each."""
    named = [(field, (f"{index}.jpg", data)) for index, (field, data) in enumerate(files)]
    return sent(files=named, **options)


def form_of(*parts: bytes, end: bytes = b"--x--\r\n") -> Sent:
    """A form written by hand, of parts from their first header on."""
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end
    return Sent([("content-type", "multipart/form-data; boundary=x")], in_chunks(body, 7))


def field_part(name: str = "note", value: bytes = b"hello") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
