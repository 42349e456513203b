"""Images as files of a form, and forms that are refused. No Ray and no model here."""

import base64

import pytest

from mask_ray.serving.http.payloads import Payload
from tests.support import image_files
from tests.support.payload_requests import (
    SMALL,
    Sent,
    field_part,
    form,
    form_of,
    in_chunks,
    read,
    refusal,
    sent,
)


def test_one_file_is_one_image() -> None:
    image = image_files.jpeg()

    assert read(form(("anything", image))) == Payload((image,), is_list=False)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 13, 100_000])
def test_several_files_are_a_list_in_their_order(chunk_bytes: int) -> None:
    first, second = image_files.png(), image_files.jpeg()

    payload = read(form(("a", first), ("a", second), ("b", first), chunk_bytes=chunk_bytes))

    assert payload == Payload((first, second, first), is_list=True)


@pytest.mark.parametrize("name", ["images", "images[]"])
def test_a_single_file_named_images_is_a_list(name: str) -> None:
    assert read(form((name, b"1"))) == Payload((b"1",), is_list=True)


def test_an_image_needs_no_file_name_where_its_type_is_given() -> None:
    part = b'Content-Disposition: form-data; name="a"\r\nContent-Type: image/png\r\n\r\npixels'

    assert read(form_of(part)).images == (b"pixels",)


def encoded_part(encoding: bytes, content: bytes) -> bytes:
    return (
        b'Content-Disposition: form-data; name="a"; filename="a.png"\r\n'
        b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + content
    )


@pytest.mark.parametrize("encoding", [b"base64", b"BASE64 "])
def test_a_file_may_be_base64(encoding: bytes) -> None:
    image = image_files.png()

    received = form_of(
        encoded_part(encoding, base64.encodebytes(image)), encoded_part(b"binary", b"1")
    )

    assert read(received).images == (image, b"1")


def test_the_limits_of_base64_are_those_of_what_it_stands_for() -> None:
    most = encoded_part(b"base64", base64.encodebytes(b"1" * 10))

    assert read(form_of(most, most), limits=SMALL).images == (b"1" * 10,) * 2
    over = encoded_part(b"base64", base64.b64encode(b"1" * 11))
    assert refusal(form_of(over), limits=SMALL) == (
        413,
        "file 1 has over 10 bytes; at most that are allowed",
    )
    assert refusal(form_of(encoded_part(b"base64", b"1" * 500)), limits=SMALL)[0] == 413
    status, message = refusal(form_of(most, most, most), limits=SMALL)
    assert (status, "over 25 bytes together" in message) == (413, True)


@pytest.mark.parametrize(
    ("encoding", "content", "status", "reason"),
    [
        (b"base64", b"{}", 422, "file 1 must be base64"),
        (b"quoted-printable", b"=41", 415, "must be base64 or binary, or be left out; got 'quoted"),
    ],
)
def test_other_encodings_are_refused(
    encoding: bytes, content: bytes, status: int, reason: str
) -> None:
    answered, message = refusal(form_of(encoded_part(encoding, content)))

    assert (answered, reason in message) == (status, True), message


@pytest.mark.parametrize("parameter", [b"filename*=UTF-8''na%C3%AFve.jpg", b"FileName*0*=utf-8''a"])
def test_a_file_name_may_be_encoded(parameter: bytes) -> None:
    part = b'Content-Disposition: form-data; name="images"; ' + parameter + b"\r\n\r\npixels"

    assert read(form_of(part)) == Payload((b"pixels",), is_list=True)


def test_other_fields_are_left_out() -> None:
    files = {"image": ("a.jpg", b"1")}

    assert read(sent(files=files, data={"token": "abc"})) == Payload((b"1",), is_list=False)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [field_part()],
        # A browser whose user chose no file.
        [b'Content-Disposition: form-data; name="a"; filename=""\r\n\r\n'],
    ],
)
def test_a_form_without_a_file_says_so(parts: list[bytes]) -> None:
    status, message = refusal(
        form_of(*parts, end=b"--x--\r\n" if parts else b"--x\r\n\r\n\r\n--x--")
    )

    assert (status, "at least one file" in message) == (422, True)


def test_too_many_files_are_refused_before_their_bytes() -> None:
    received = form(*[("a", b"1")] * 4, ("a", b"1" * 1000))

    assert refusal(received, limits=SMALL) == (
        413,
        "multipart/form-data must hold at most 3 images; got 4",
    )
    assert received.num_taken < 120


def test_a_file_over_the_limit_is_refused_as_it_arrives() -> None:
    received = form(("a", b"1"), ("a", b"1" * 10_000))

    assert refusal(received, limits=SMALL) == (
        413,
        "file 2 has over 10 bytes; at most that are allowed",
    )
    assert received.num_taken < 60


def test_files_that_are_too_large_together_are_refused() -> None:
    assert len(read(form(*[("a", b"1" * 8)] * 3), limits=SMALL).images) == 3
    status, message = refusal(form(*[("a", b"1" * 9)] * 3), limits=SMALL)
    assert (status, "over 25 bytes together" in message) == (413, True)


def test_fields_are_limited_too() -> None:
    status, message = refusal(form_of(*[field_part()] * 17))
    assert (status, "at most 16 fields" in message) == (413, True)

    long_field = form_of(field_part(value=b"1" * 1_000_000))
    assert refusal(long_field, limits=SMALL)[0] == 413


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "cut off"),
        (b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nhalf an im', "cut off"),
        (b"no boundary", "is not multipart/form-data"),
        (b"--x\r\nno colon\r\n\r\n", "is not multipart/form-data"),
        (b"--x\r\n" + b"A: b\r\n" * 100, "is not multipart/form-data"),
        (b"--x\r\nA: " + b"b" * 10_000, "is not multipart/form-data"),
    ],
)
def test_a_malformed_form_is_refused(body: bytes, reason: str) -> None:
    received = Sent([("content-type", "multipart/form-data; boundary=x")], in_chunks(body, 7))

    status, message = refusal(received)

    assert (status, reason in message) == (400, True), message
    assert len(message) < 200


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 5000}"])
def test_a_form_needs_a_sensible_boundary(boundary: str) -> None:
    assert refusal(Sent([("content-type", f"multipart/form-data{boundary}")], []))[0] == 400
