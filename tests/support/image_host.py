"""A web server with images on this machine, and fetching from it under made-up names.

The server's address is allowed by name; all other addresses are judged by the real rule.
"""

import asyncio
import ssl
from typing import Any

import pytest

from mask_ray.config import RemoteImageSettings
from mask_ray.serving.http.limits import PayloadError
from mask_ray.serving.http.remote_images import RemoteImages, is_public
from tests.support import image_files

IMAGE = image_files.png()
LOOPBACK = "127.0.0.1"


def answer(
    body: bytes = IMAGE, status: int = 200, content_type: str | None = "image/png", **headers: str
) -> bytes:
    if content_type is not None:
        headers["content-type"] = content_type
    headers.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode() + body


def moved(location: str, status: int = 302) -> bytes:
    return answer(b"", status, None, location=location)


class Host:
    """An HTTP server on loopback that says the same to everybody, and what it was asked."""

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers) or [answer()]
        self.requests: list[str] = []
        self.server_names: list[str | None] = []
        self._tls = tls
        self.never = False
        self.drip = False

    async def __aenter__(self) -> "Host":
        self._server = await asyncio.start_server(self._serve, LOOPBACK, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        try:
            if self.never:
                await reader.read()
            elif self.drip:
                await self._send_slowly(writer)
            else:
                index = min(len(self.requests), len(self.answers)) - 1
                writer.write(self.answers[index].replace(b"PORT", str(self.port).encode()))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _send_slowly(self, writer: asyncio.StreamWriter) -> None:
        """Forever a little, faster than any limit on a single read."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
        while True:
            writer.write(b"1")
            await writer.drain()
            await asyncio.sleep(0.001)


def resolver(**addresses: list[str]) -> Any:
    """Resolves names by their first label; others to loopback, where the server is."""

    async def resolve_made_up(host: str, port: int) -> list[str]:
        found = addresses.get(host.partition(".")[0], [LOOPBACK])
        if not found:
            raise OSError("no such host")
        return found

    return resolve_made_up


def fetch(
    host: Host,
    url: str = "http://photos.example:PORT/a.png",
    *,
    allowed: tuple[str, ...] = ("photos.example:PORT", "*.photos.example:PORT"),
    resolve: Any = None,
    tls: ssl.SSLContext | None = None,
    **limits: Any,
) -> bytes:
    async def run() -> bytes:
        async with host:
            images = RemoteImages(
                RemoteImageSettings(
                    allowed_hosts=tuple(a.replace("PORT", str(host.port)) for a in allowed),
                    **{"fetch_timeout_s": 5} | limits,
                ),
                resolve=resolve or resolver(),
                is_allowed_address=lambda address: address == LOOPBACK or is_public(address),
                tls=tls,
            )
            return await images.fetch(url.replace("PORT", str(host.port)))

    return asyncio.run(run())


def refusal(host: Host, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(PayloadError) as caught:
        fetch(host, *arguments, **options)
    message = str(caught.value)
    # What it repeats of the URL it was given is no secret.
    assert LOOPBACK not in message.partition("; got ")[0]
    assert len(message) < 200
    return caught.value.status, message
