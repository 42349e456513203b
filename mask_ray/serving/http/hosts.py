"""Trusted hosts: requests to any other name are rejected.

Otherwise a page in a visitor's browser could reach a service on the visitor's machine or network,
by giving its own name the service's address (DNS rebinding). Addresses are trusted: such a page has
a name. So is a request without a host, which no browser sends.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from mask_ray.serving.http.errors import error_response

_ALWAYS = ("localhost", "*.localhost")


class TrustedHosts:
    """ASGI middleware: answers 421 to requests whose `Host` is not trusted.

    Args:
        app: The app inside.
        names: Trusted names, in lower case: `host`, `*.host` for all below it, `*` for all.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        trusted = (*_ALWAYS, *names)
        self._trusts_all = "*" in trusted
        self._names = frozenset(name for name in trusted if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in trusted if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests to a trusted host."""
        if scope["type"] == "http" and not self._trusts_all and not self._is_trusted(scope):
            detail = "The service is not known by this name; see its setting trusted_hosts."
            await error_response(scope["path"], 421, detail)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return not hosts or (len(hosts) == 1 and self._trusts(hosts[0].decode("latin-1")))

    def _trusts(self, host: str) -> bool:
        name = _without_port(host).lower().removesuffix(".")
        return name in self._names or name.endswith(self._suffixes) or _is_address(name)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and (":" not in name or name[-1:] == "]") else host


@lru_cache(64)
def _is_address(name: str) -> bool:
    """Whether it is an IPv4 address, or one of IPv6 in brackets."""
    try:
        if name.startswith("[") and name.endswith("]"):
            ipaddress.IPv6Address(name[1:-1])
        else:
            ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True
