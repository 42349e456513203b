"""Fetches images from URLs of clients, only from allowed hosts.

A service that fetches any URL can be made to read what only it can reach: its own machine, the
network behind it, the metadata of its cloud. So the host must be on a list, all its addresses must
be public, and the connection goes to an address that was checked: the name is not resolved again.
A redirect is checked like the first URL. Nothing is fetched while the list is empty.
Source of the rules: OWASP, Server-Side Request Forgery Prevention Cheat Sheet.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable

import httpx

from mask_ray.config import PORTS_BY_SCHEME, AllowedHost, RemoteImageSettings
from mask_ray.serving.http.limits import PayloadError, quoted

Resolve = Callable[[str, int], Awaitable[list[str]]]

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL_CHARACTERS = 2_048
_BINARY_TYPE = "application/octet-stream"

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291; IANA has assigned no other range.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def is_public(address: str) -> bool:
    """Whether an IP address is a public address of one host.

    False for private, loopback, link-local, multicast, reserved and unspecified addresses, and
    for IPv6 addresses that contain one of these: IPv4-mapped, 6to4 and NAT64. False for Teredo
    addresses too, since their owner chooses where they lead.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(ip)
        if embedded is None:
            return ip in _GLOBAL_UNICAST and ip.is_global and not ip.is_reserved
        ip = embedded
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _embedded_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


async def resolve(host: str, port: int) -> list[str]:
    """Look up all addresses of a host, without duplicates.

    Raises:
        OSError: the host has no address.
        UnicodeError: the name is not a valid host name.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class RemoteImages:
    """Fetches images within limits. Many fetches can run at once.

    Args:
        settings: Allowed hosts, and limits of a fetch.
        resolve: Looks up the addresses of a host.
        is_allowed_address: Whether a connection to an address is allowed.
        tls: For hosts whose certificates no well-known authority signed.
    """

    def __init__(
        self,
        settings: RemoteImageSettings,
        *,
        resolve: Resolve = resolve,
        is_allowed_address: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._allowed_hosts = tuple(map(AllowedHost.parse, settings.allowed_hosts))
        self._resolve = resolve
        self._is_allowed_address = is_allowed_address
        # Created once: it reads over a hundred certificates, or those of SSL_CERT_FILE.
        self._tls = tls or httpx.create_ssl_context()

    async def fetch(self, url: str) -> bytes:
        """Fetch the encoded image at a URL.

        Raises:
            PayloadError: 413, over `max_image_bytes`; 415, not an image, or compressed; 422, the
                URL is malformed or not allowed, or does not answer with an image in time. No
                message contains an address, or anything from a host that is not allowed.
        """
        timeout_s = self._settings.fetch_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(url)
        except TimeoutError:
            raise PayloadError(422, f"url gave no image within {timeout_s:g} s") from None
        except httpx.HTTPError:
            raise PayloadError(422, "url gave no image: the connection failed") from None

    async def _follow(self, url: str) -> bytes:
        at = _parse(url)
        addresses = await self._checked_addresses(at)
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._get(at, addresses)
            if isinstance(answer, bytes):
                return answer
            at, addresses = await self._redirected(at, answer)
        raise PayloadError(
            422, f"url must lead to an image within {self._settings.max_redirects} redirects"
        )

    async def _redirected(self, url: httpx.URL, location: str) -> tuple[httpx.URL, list[str]]:
        try:
            target = _parse(location, base=url)
            return target, await self._checked_addresses(target)
        except PayloadError:
            # The location is not repeated: it can reveal the network behind the host.
            raise PayloadError(422, "url redirects to a URL that is not allowed") from None

    async def _checked_addresses(self, url: httpx.URL) -> list[str]:
        """Return the addresses of an allowed host; 422 if any of them is not allowed."""
        host, port = _host(url), _port(url)
        if not any(allowed.matches(host, port, url.scheme) for allowed in self._allowed_hosts):
            raise PayloadError(
                422, f"url must name an allowed host and port; got {quoted(f'{host}:{port}')}"
            )
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        # One message for both cases, or it would reveal names inside the network.
        if not addresses or not all(map(self._is_allowed_address, addresses)):
            raise PayloadError(
                422, f"url must name a host with public addresses only; got {quoted(host)}"
            )
        return addresses

    async def _get(self, url: httpx.URL, addresses: list[str]) -> bytes | str:
        """Get the image, or the location of a redirect, from the first address that connects."""
        for address in addresses[:-1]:
            try:
                return await self._get_from(url, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._get_from(url, addresses[-1])

    async def _get_from(self, url: httpx.URL, address: str) -> bytes | str:
        request = httpx.Request(
            "GET",
            url.copy_with(host=address),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "User-Agent": "mask_ray",
            },
            # The name that TLS sends, and checks the certificate against.
            extensions={"sni_hostname": _host(url)},
        )
        # A client for each request: a shared one would reuse a connection for another host of the
        # same address, whose certificate was not checked.
        async with httpx.AsyncClient(
            verify=self._tls, trust_env=False, timeout=self._settings.fetch_timeout_s
        ) as client:
            response = await client.send(request, stream=True)
            try:
                return await self._read(response)
            finally:
                await response.aclose()

    async def _read(self, response: httpx.Response) -> bytes | str:
        if response.status_code in _REDIRECTS:
            return str(response.headers.get("location", ""))
        _check_is_image(response)
        max_bytes = self._settings.max_image_bytes
        declared = response.headers.get("content-length", "")
        num_bytes = float(declared) if declared.isdecimal() else 0
        encoded = bytearray()
        if num_bytes <= max_bytes:
            async for chunk in response.aiter_raw():
                encoded += chunk
                if len(encoded) > max_bytes:
                    break
        if max(num_bytes, len(encoded)) > max_bytes:
            raise PayloadError(
                413, f"image at url has over {max_bytes} bytes; at most that are allowed"
            )
        return bytes(encoded)


def _parse(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """Parse a URL into the object that is both checked and requested.

    Raises:
        PayloadError: 422, it is malformed, of another scheme, or has a user name or password.
    """
    if len(url) > _MAX_URL_CHARACTERS:
        raise PayloadError(
            422, f"url must have at most {_MAX_URL_CHARACTERS} characters; got {len(url)}"
        )
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except httpx.InvalidURL:
        raise PayloadError(422, f"url must be a URL; got {quoted(url)}") from None
    if parsed.scheme not in PORTS_BY_SCHEME or not parsed.raw_host:
        raise PayloadError(422, f"url must begin with http:// or https://; got {quoted(url)}")
    if parsed.userinfo:
        # Not repeated in the message: it may contain a password.
        raise PayloadError(422, "url must not contain a user name or password; got one")
    return parsed


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower()


def _port(url: httpx.URL) -> int:
    return url.port or PORTS_BY_SCHEME[url.scheme]


def _check_is_image(response: httpx.Response) -> None:
    if response.status_code != 200:
        raise PayloadError(422, f"url must answer with status 200; got {response.status_code}")
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not content_type.startswith("image/") and content_type not in ("", _BINARY_TYPE):
        raise PayloadError(
            415, f"url must answer with image/* or {_BINARY_TYPE}; got {quoted(content_type)}"
        )
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise PayloadError(415, f"url must answer without Content-Encoding; got {quoted(coding)}")
