"""Chooses the proxy of each request by the usual variables, and none for this machine.

httpx reads all variables when a client is made, and fails on those that it cannot use, even if no
request would go through them. Some desktops set `ALL_PROXY=socks://...` and `NO_PROXY=[::1]`.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from mask_ray.config import MaskRayError

_SCHEMES = ("http", "https")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


def proxy_for(url: httpx.URL | str) -> str | None:
    """Return the proxy of a request: `HTTP_PROXY` or `HTTPS_PROXY`, else `ALL_PROXY`, else None.

    Hosts of `NO_PROXY` and this machine have none.

    Raises:
        MaskRayError: the variable holds something else than the URL of an HTTP proxy, or `url` is
            no URL.
    """
    try:
        url = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MaskRayError(f"{url} is not a URL: {error}") from None
    if is_this_machine(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    name = url.scheme if url.scheme in proxies else "all"
    if not (proxy := proxies.get(name)):
        return None
    # curl and others take a host and a port alone.
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parsed = httpx.URL(proxy)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in _SCHEMES or not parsed.host:
        # Not the whole: it may hold a password.
        got = proxy.partition("://")[0]
        raise MaskRayError(
            f"{name.upper()}_PROXY must be the URL of an HTTP proxy, http://HOST:PORT; got "
            f"{got}://... Change it, or name {url.host} in NO_PROXY"
        )
    return proxy


def is_this_machine(host: str) -> bool:
    """Return whether a host of a URL is a loopback address or name, or the unspecified address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def without_this_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `NO_PROXY` with this machine added, for libraries that choose a proxy themselves.

    Empty if the environment has no proxy. Addresses lose their brackets, which httpx rejects.
    """
    if not any(environment.get(each) or environment.get(each.upper()) for each in _VARIABLES):
        return {}
    # As most libraries do: the name in lower case wins.
    value = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip().strip("[]") for host in value.split(",") if host.strip()]
    joined = ",".join(dict.fromkeys([*hosts, *_THIS_MACHINE]))
    return {"NO_PROXY": joined, "no_proxy": joined}


@contextmanager
def client(**options: Any) -> Iterator[httpx.Client]:
    """Open a client that chooses the proxy of each request, also after redirects.

    Args:
        options: Of `httpx.Client`, except of its connections.
    """
    with httpx.Client(transport=_Transport(), **options) as opened:
        yield opened


def async_transport(url: str, max_connections: int) -> httpx.AsyncHTTPTransport:
    """Make the connections of an `httpx.AsyncClient` whose requests all go to one host.

    Raises:
        MaskRayError: as `proxy_for`.
    """
    limits = httpx.Limits(max_connections=max_connections)
    return httpx.AsyncHTTPTransport(proxy=proxy_for(url), limits=limits)


class _Transport(httpx.BaseTransport):
    """Sends each request through its proxy, with one pool of connections for each proxy."""

    def __init__(self) -> None:
        self._by_proxy: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            MaskRayError: as `proxy_for`.
        """
        proxy = proxy_for(request.url)
        if proxy not in self._by_proxy:
            self._by_proxy[proxy] = httpx.HTTPTransport(proxy=proxy)
        return self._by_proxy[proxy].handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for transport in self._by_proxy.values():
            transport.close()
