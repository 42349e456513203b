"""Images behind URLs, fetched from a real server on this machine. Names are made up.

That server's address is let through by name; all others are judged by the real rule.
"""

import asyncio
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from mask_ray.config import RemoteImageSettings
from mask_ray.serving.http.limits import PayloadError
from mask_ray.serving.http.remote_images import RemoteImages, is_public, resolve
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


def test_fetches_an_image_as_the_host_it_names() -> None:
    host = Host()

    assert fetch(host, "http://PHOTOS.example:PORT/a%20b.png?c=d#e") == IMAGE

    request_line, *headers = host.requests[0].splitlines()
    assert request_line == "GET /a%20b.png?c=d HTTP/1.1"
    assert f"Host: photos.example:{host.port}" in headers
    assert "Accept-Encoding: identity" in headers


@pytest.mark.parametrize("content_type", ["IMAGE/JPEG; q=1", "application/octet-stream", None])
def test_types_that_may_be_an_image(content_type: str | None) -> None:
    assert fetch(Host(answer(content_type=content_type))) == IMAGE


def test_nothing_is_fetched_unless_a_host_is_allowed() -> None:
    host = Host()

    assert refusal(host, allowed=())[0] == 422
    assert host.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example:PORT/",
        "http://photos.example.other.example:PORT/",
        "http://notphotos.example:PORT/",
        "http://127.0.0.1:PORT/",
        "http://2130706433:PORT/",
        "http://[::1]:PORT/",
        "http://photos.example./",
        # The scheme's own port, where the list names another.
        "http://photos.example/",
        "https://photos.example/",
    ],
)
def test_other_hosts_and_ports_are_refused(url: str) -> None:
    host = Host()

    status, message = refusal(host, url)

    assert (status, "must name an allowed host and port" in message) == (422, True)
    assert host.requests == []


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("*.photos.example", "http://a.photos.example/", True),
        ("*.photos.example", "http://a.b.photos.example/", True),
        ("*.photos.example", "http://photos.example/", False),
        ("*.photos.example", "http://aphotos.example/", False),
        ("Photos.Example", "https://photos.example/", True),
        ("photos.example", "https://photos.example:443/", True),
        ("photos.example", "https://photos.example:80/", False),
        ("photos.example", "http://photos.example:8080/", False),
        ("xn--bcher-kva.example", "http://bücher.example/", True),
    ],
)
def test_what_an_entry_of_the_list_allows(entry: str, url: str, is_allowed: bool) -> None:
    """All names lead to a forbidden address here, so that an allowed one is refused later."""

    async def nowhere(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    images = RemoteImages(RemoteImageSettings(allowed_hosts=(entry,)), resolve=nowhere)

    with pytest.raises(PayloadError) as caught:
        asyncio.run(images.fetch(url))
    assert ("public addresses only" in str(caught.value)) == is_allowed


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.",
        "http://a.example",
        "a.example/",
        "1.2.3.4",
        "[::1]",
        "a:0",
        "a:b",
        "a b",
        "*a",
    ],
)
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError, match=r"must be names such as photos\.example\.org"):
        RemoteImageSettings(allowed_hosts=(entry,))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must begin with http:// or https://"),
        ("photos.example/a.png", "must begin with http:// or https://"),
        ("//photos.example:PORT/", "must begin with http:// or https://"),
        ("file:///etc/passwd", "must begin with http:// or https://"),
        ("gopher://photos.example:PORT/", "must begin with http:// or https://"),
        ("http:///a.png", "must begin with http:// or https://"),
        ("http://photos.example:port/", "must be a URL"),
        ("http://photos.example:PORT/\r\nHost: a", "must be a URL"),
        ("http://user:secret@photos.example:PORT/", "must not contain a user name"),
        (r"http://photos.example\@other.example:PORT/", "must not contain a user name"),
        ("http://photos.example:PORT/" + "a" * 3000, "at most 2048 characters"),
    ],
)
def test_urls_of_another_form_are_refused(url: str, reason: str) -> None:
    host = Host()

    status, message = refusal(host, url)

    assert (status, reason in message) == (422, True), message
    assert "secret" not in message
    assert host.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.53",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "4000::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("forbidden", [["10.0.0.1"], [LOOPBACK, "10.0.0.1"], ["::1", LOOPBACK], []])
def test_one_forbidden_address_is_enough(forbidden: list[str]) -> None:
    host = Host()

    status, message = refusal(host, resolve=resolver(photos=forbidden))

    expected = "url must name a host with public addresses only; got 'photos.example'"
    assert (status, message) == (422, expected)
    assert host.requests == []


def test_the_address_that_was_checked_is_the_one_used() -> None:
    """A name that is public when asked first, and private ever after."""
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return [LOOPBACK] if len(asked) == 1 else ["10.0.0.1"]

    host = Host()

    assert fetch(host, resolve=rebinding) == IMAGE
    assert asked == ["photos.example"]


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    # 127.0.0.2 is this machine too, and nothing listens there.
    images: list[bytes] = []

    async def run() -> None:
        async with Host() as host:
            settings = RemoteImageSettings(allowed_hosts=(f"photos.example:{host.port}",))
            remote = RemoteImages(
                settings,
                resolve=resolver(photos=["127.0.0.2", LOOPBACK]),
                is_allowed_address=lambda _: True,
            )
            images.append(await remote.fetch(f"http://photos.example:{host.port}/"))

    asyncio.run(run())
    assert images == [IMAGE]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    host = Host(moved("/b?c=d", status), moved("http://cdn.photos.example:PORT/e"), answer())

    assert fetch(host) == IMAGE
    first_lines = [request.splitlines()[0] for request in host.requests]
    assert first_lines == ["GET /a.png HTTP/1.1", "GET /b?c=d HTTP/1.1", "GET /e HTTP/1.1"]
    assert f"Host: cdn.photos.example:{host.port}" in host.requests[2]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://other.example:PORT/",
        "http://inside.photos.example:PORT/",
        "http://user:secret@photos.example:PORT/",
        "file:///etc/passwd",
        "http://photos.example:1/",
        "http://[/",
        "http://" + "a" * 3000,
    ],
)
def test_a_redirect_is_checked_like_any_url(location: str) -> None:
    host = Host(moved(location))

    status, message = refusal(host, resolve=resolver(inside=["192.168.7.7"]))

    assert status == 422
    assert "url redirects to a URL that is not allowed" in message or "connection failed" in message
    assert not any(word in message for word in ("169.254", "192.168", "secret", "passwd", "inside"))
    assert len(host.requests) == 1


def test_redirects_are_counted() -> None:
    host = Host(moved("/again"))

    assert refusal(host, max_redirects=2) == (422, "url must lead to an image within 2 redirects")
    assert len(host.requests) == 3
    assert refusal(Host(moved("/b"), answer()), max_redirects=0)[0] == 422


def test_cookies_are_not_kept() -> None:
    host = Host(answer(b"", 302, None, location="/b", set_cookie="a=b"), answer())

    assert fetch(host) == IMAGE
    assert "cookie" not in host.requests[1].lower()


@pytest.mark.parametrize("attribute", ["never", "drip"])
def test_a_slow_host_is_given_up(attribute: str) -> None:
    host = Host()
    setattr(host, attribute, True)

    assert refusal(host, fetch_timeout_s=0.1) == (422, "url gave no image within 0.1 s")


def test_a_slow_resolver_is_given_up() -> None:
    async def stuck(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    assert refusal(Host(), resolve=stuck, fetch_timeout_s=0.05)[0] == 422


def test_the_byte_limit_is_inclusive() -> None:
    assert fetch(Host(answer(b"1" * 10)), max_image_bytes=10) == b"1" * 10
    status, message = refusal(Host(answer(b"1" * 11)), max_image_bytes=10)
    assert (status, message) == (
        413,
        "image at url has over 10 bytes; at most that are allowed",
    )


def test_an_image_of_unknown_length_is_read_only_up_to_the_limit() -> None:
    host = Host()
    host.drip = True

    assert refusal(host, max_image_bytes=10)[0] == 413


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        (answer(status=404), 422, "status 200; got 404"),
        (answer(status=500), 422, "status 200; got 500"),
        (answer(status=206), 422, "status 200; got 206"),
        (moved("/b", status=300), 422, "status 200; got 300"),
        (answer(content_type="text/html"), 415, "got 'text/html'"),
        (answer(content_type="x" * 999), 415, "got 'xxx"),
        (answer(content_encoding="gzip"), 415, "got 'gzip'"),
        (b"not HTTP\r\n\r\n", 422, "connection failed"),
        (answer(content_length="9999"), 422, "connection failed"),
        (b"", 422, "connection failed"),
    ],
)
def test_other_answers_are_refused(given: bytes, status: int, reason: str) -> None:
    came, message = refusal(Host(given))

    assert (came, reason in message) == (status, True), message


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert fetch(Host()) == IMAGE


async def _resolve_here() -> list[str]:
    return await resolve("localhost", 80)


def test_names_are_resolved_by_the_system() -> None:
    addresses = asyncio.run(_resolve_here())

    assert addresses
    assert len(set(addresses)) == len(addresses)
    assert not any(map(is_public, addresses))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of photos.example, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("photos.example")]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "host.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_host(certificate: Path) -> Host:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    host = Host(tls=tls)
    names: Callable[..., None] = lambda _, name, __: host.server_names.append(name)  # noqa: E731
    tls.sni_callback = names
    return host


def test_tls_asks_for_the_name_and_checks_it(tls_host: Host, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)

    assert fetch(tls_host, "https://photos.example:PORT/", tls=trusting) == IMAGE
    assert tls_host.server_names == ["photos.example"]


def test_a_certificate_of_another_name_is_refused(tls_host: Host, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)

    status, message = refusal(tls_host, "https://cdn.photos.example:PORT/", tls=trusting)

    assert (status, "connection failed" in message) == (422, True)
    assert tls_host.requests == []


def test_a_certificate_that_nobody_signed_is_refused(tls_host: Host) -> None:
    assert refusal(tls_host, "https://photos.example:PORT/")[0] == 422
    assert tls_host.requests == []
