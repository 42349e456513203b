"""Every way to send images, and every way to send too much. No Ray and no model here."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from mask_ray.config import PayloadLimits
from mask_ray.serving.http.payloads import Payload, read_images
from tests.support import image_files
from tests.support.payload_requests import SMALL, Sent, read, refusal, sent, sent_json, text_of

# Raw bodies


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "image/jpeg",
        "IMAGE/PNG; q=1",
        "application/octet-stream",
        "binary/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)
def test_the_body_is_one_image(content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    image = image_files.jpeg()

    assert read(sent(content=image, headers=headers)) == Payload((image,), is_list=False)


def test_an_empty_body_is_left_to_the_decoder() -> None:
    assert read(sent(content=b"")) == Payload((b"",), is_list=False)


@pytest.mark.parametrize("content_type", ["text/plain", "x", "multipart/mixed; boundary=x"])
def test_other_types_are_refused(content_type: str) -> None:
    status, message = refusal(sent(content=b"1", headers={"content-type": content_type}))

    assert status == 415
    assert f"got {content_type.partition(';')[0]!r}" in message


def test_compressed_bodies_are_refused() -> None:
    status, message = refusal(sent(content=b"1", headers={"content-encoding": "gzip"}))

    assert (status, "got 'gzip'" in message) == (415, True)


def test_the_byte_limit_is_inclusive() -> None:
    assert read(sent(content=b"1" * 10), limits=SMALL).images == (b"1" * 10,)
    assert refusal(sent(content=b"1" * 11), limits=SMALL) == (
        413,
        "image has over 10 bytes; at most that are allowed",
    )


@pytest.mark.parametrize("declared", ["999999", "9" * 5000])
@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x"])
def test_a_body_declared_too_long_is_not_read(declared: str, content_type: str) -> None:
    unread = Sent([("content-type", content_type), ("content-length", declared)], [b"1"])

    assert refusal(unread, limits=SMALL)[0] == 413
    assert unread.num_taken == 0


@pytest.mark.parametrize("content_type", ["image/png", "application/json"])
def test_a_body_of_unknown_length_is_read_only_up_to_the_limit(content_type: str) -> None:
    endless = Sent([("content-type", content_type)], iter(lambda: b" " * 50_000, b""))

    assert refusal(endless, limits=SMALL)[0] == 413
    assert endless.num_taken <= 2


# JSON


def test_json_with_one_image() -> None:
    image = image_files.jpeg()

    assert read({"image": text_of(image)}) == Payload((image,), is_list=False)
    data_url = f"data:image/jpeg;base64,{text_of(image)}"
    assert read({"image": data_url}) == Payload((image,), is_list=False)


@pytest.mark.parametrize("images", [(b"1",), (b"1", b"22", b"333")])
def test_json_with_a_list_of_images(images: tuple[bytes, ...]) -> None:
    assert read({"images": [text_of(image) for image in images]}) == Payload(images, is_list=True)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/png;BASE64,"])
@pytest.mark.parametrize("num_bytes", [1, 2, 3, 100])
def test_base64_may_be_wrapped_url_safe_and_without_padding(num_bytes: int, prefix: str) -> None:
    image = b"\xfb\xef\xff" * 34 + b"\xfe"
    image = image[-num_bytes:]
    url_safe = base64.urlsafe_b64encode(image).decode()
    wrapped = base64.encodebytes(image).decode()
    crlf = wrapped.replace("\n", "\r\n")

    for text in (url_safe, url_safe.rstrip("="), text_of(image).rstrip("="), wrapped, f" {crlf} "):
        assert read({"image": prefix + text}).images == (image,), text


@pytest.mark.parametrize(
    "text", ["Q", "Q Q=", "QQ=", "QQ===", "QQ==QQ==", "Q=Q", "====", "é", "{}"]
)
def test_other_text_is_not_base64(text: str) -> None:
    status, message = refusal({"images": ["QQ==", text]})

    assert status == 422
    assert message.startswith("images[1] must be base64")


def test_line_breaks_do_not_count_as_bytes() -> None:
    assert read({"image": "QUJD\r\n" * 3 + "QQ"}, limits=SMALL).images == (b"ABCABCABCA",)
    assert refusal({"image": "QUJD\r\n" * 4}, limits=SMALL)[0] == 413


@pytest.mark.parametrize("text", ["data:,hello", "data:image/png;base64", f"data:{'a' * 9999},"])
def test_other_data_urls_are_refused(text: str) -> None:
    status, message = refusal({"image": text})

    assert (status, "data:image/png;base64,..." in message) == (422, True)
    assert len(message) < 200


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "exactly one key of image, images; got an empty object"),
        ([], "got a list"),
        ("text", "got a string"),
        (None, "got null"),
        ({"image": "QQ==", "images": ["QQ=="]}, "got 'image', 'images'"),
        ({"picture": "QQ=="}, "got 'picture'"),
        ({"image": 1}, "image must be a string; got a number"),
        ({"image": ["QQ=="]}, "image must be a string; got a list"),
        ({"images": "QQ=="}, "one or more base64 strings; got a string"),
        ({"images": []}, "got an empty list"),
        ({"images": ["QQ==", None]}, "images[1] must be a string; got null"),
        ({"url": "http://example.org"}, "not fetched from URLs here"),
        ({"x" * 9999: 1}, "got 'xxx"),
        ({str(number): 1 for number in range(99)}, "and 94 more"),
    ],
)
def test_json_of_another_shape_is_refused(document: Any, reason: str) -> None:
    status, message = refusal(document)

    assert (status, reason in message) == (422, True), message
    assert len(message) < 300


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 9999, b'{"image": "\xff"}', b"\0" * 9999])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}

    status, message = refusal(sent(content=body, headers=headers))

    assert (status, "body is not JSON" in message) == (400, True)
    assert len(message) < 200


def test_the_limits_hold_for_json() -> None:
    assert read({"image": text_of(b"1" * 10)}, limits=SMALL).images == (b"1" * 10,)
    for num_bytes in (11, 12, 13, 1000):
        assert refusal({"image": text_of(b"1" * num_bytes)}, limits=SMALL) == (
            413,
            "image has over 10 bytes; at most that are allowed",
        )
    assert refusal({"images": ["QQ=="] * 4}, limits=SMALL) == (
        413,
        "images must hold at most 3 images; got 4",
    )
    assert refusal({"images": [text_of(b"1" * 9)] * 3}, limits=SMALL)[0] == 413


def test_the_most_that_is_allowed_passes_in_json() -> None:
    limits = {"max_image_bytes": 1_000_000, "max_total_bytes": 1_000_000, "max_images": 1}
    received = sent_json({"image": text_of(b"1" * 1_000_000)}, chunk_bytes=65_536)

    assert len(read(received, limits=limits).images[0]) == 1_000_000


def test_a_url_is_fetched_where_that_is_configured() -> None:
    async def fetch(url: str) -> bytes:
        return f"behind {url}".encode()

    assert read({"url": "http://a/b"}, fetch) == Payload((b"behind http://a/b",), is_list=False)
    assert read({"image": "QQ=="}, fetch).images == (b"A",)
    assert refusal({"url": 1}, fetch) == (422, "url must be a string; got a number")


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"at least max_image_bytes \(10\); got 9"):
        PayloadLimits(max_image_bytes=10, max_total_bytes=9)


def test_reading_can_be_given_up() -> None:
    """A caller's time limit ends a request whose body does not arrive."""

    async def stuck() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(stuck()), "more_body": True}

    async def read_for_a_while() -> None:
        async with asyncio.timeout(0.01):
            await read_images(Request({"type": "http", "headers": []}, receive), PayloadLimits())

    with pytest.raises(TimeoutError):
        asyncio.run(read_for_a_while())


def test_json_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    status, message = refusal([{}] * 200)

    assert (status, "got over 128 values" in message) == (413, True)
