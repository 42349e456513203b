"""Bearer tokens: if any are configured, clients must send one of them.

Tokens come from the environment of the deploy and from a file. Several are valid at once, so that
they can be changed one after the other: add the new one, give it to clients, remove the old one.
The file is read again when it changes, without a restart. Tokens are kept as digests, and never
logged or repeated. Each may have a name, which the access log shows and a rate limit may name.

A service that listens beyond this machine does not start without tokens.
"""

import hashlib
import hmac
import ipaddress
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from mask_ray.config import MaskRayError, ServeSettings
from mask_ray.serving.http.rate_limits import RateLimits
from mask_ray.serving.observability.exchanges import note

TOKENS_VARIABLE = "MASK_RAY_TOKENS"

# 128 random bits in base64; in hex they are longer.
MIN_TOKEN_LENGTH = 22

UNNAMED = "unnamed"

_logger = logging.getLogger(__name__)

# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# No token has a colon.
_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64}):(.*)")


class TokenError(MaskRayError):
    """The configured tokens cannot be used."""


@dataclass(frozen=True)
class Token:
    """A valid token, without the token itself: name and SHA-256."""

    name: str
    digest: bytes


def tokens_of_environment() -> tuple[Token, ...]:
    """Read `MASK_RAY_TOKENS`; empty if it is not set.

    Raises:
        TokenError: it is set but holds no token, or one that is malformed or too short.
    """
    variable = os.environ.get(TOKENS_VARIABLE)
    return () if variable is None else _parse(variable.split(","), TOKENS_VARIABLE)


class Guard:
    """Checks tokens. If tokens are configured, it stays on even when the file is lost.

    Args:
        fixed: Tokens that are valid as long as the deployment lives.
        token_file: File of further tokens.
        rate_limits: Requests per second by name.

    Raises:
        TokenError: the file holds no token or a malformed one, or cannot be read; or a rate limit
            is for a name that no token has.
    """

    def __init__(
        self,
        fixed: tuple[Token, ...] = (),
        token_file: Path | None = None,
        rate_limits: Mapping[str, float] | None = None,
    ) -> None:
        self._fixed = fixed
        self._file = None if token_file is None else _TokenFile(token_file)
        self._rate_limits = RateLimits(rate_limits or {})
        names = sorted({token.name for token in self._tokens()})
        if unknown := sorted(set(rate_limits or {}) - set(names)):
            raise TokenError(
                "rate_limits must be for names of tokens "
                f"({', '.join(names) or 'there are none'}); got {', '.join(unknown)}"
            )

    @classmethod
    def of(cls, settings: ServeSettings, fixed: tuple[Token, ...]) -> "Guard":
        """Build the guard that the settings ask for.

        Raises:
            TokenError: as `Guard`; or `require_token` is on and there is no token.
        """
        guard = cls(fixed, settings.token_file, settings.rate_limits)
        if guard.is_on:
            return guard
        if settings.require_token:
            raise TokenError(
                f"require_token is on: set {TOKENS_VARIABLE} or token_file; got no token"
            )
        _logger.warning(
            "no token is configured: anyone who can reach this service can use it. Set %s or "
            "token_file.",
            TOKENS_VARIABLE,
        )
        return guard

    @property
    def is_on(self) -> bool:
        """Whether requests need a token."""
        return bool(self._fixed) or self._file is not None

    def check_exposure(self, host: str | None) -> None:
        """Reject a service that everybody on a network could use.

        Args:
            host: Address that Serve listens on; None if none.

        Raises:
            TokenError: it is no loopback address, and there is no token.
        """
        if not self.is_on and host is not None and not _is_loopback(host):
            raise TokenError(
                f"a service that listens beyond this machine needs a token: set {TOKENS_VARIABLE} "
                f"or token_file, or http_options.host to 127.0.0.1; it listens on {host}"
            )

    def caller_of(self, token: str) -> str | None:
        """Return the name of a token that is valid now, else None. Takes the same time for all."""
        received = _digest(token)
        caller = None
        # No end at the first match.
        for known in self._tokens():
            if hmac.compare_digest(known.digest, received):
                caller = known.name
        return caller

    def wait_s(self, caller: str) -> float:
        """Count a request; see `RateLimits.wait_s`."""
        return self._rate_limits.wait_s(caller)

    def _tokens(self) -> tuple[Token, ...]:
        return self._fixed + (() if self._file is None else self._file.tokens())


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _TokenFile:
    """A file with one token a line. Empty lines and lines that start with # are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = self._file_state()
            self._tokens = self._read()
        except OSError as error:
            raise TokenError(f"token_file {path} cannot be read: {error.strerror}") from None

    def tokens(self) -> tuple[Token, ...]:
        """Return the file's current tokens.

        Empty while the file cannot be used: it may have been changed to revoke a token.
        """
        try:
            state = self._file_state()
            if state != self._state:
                self._tokens = self._read()
        except (OSError, TokenError) as error:
            state = None
            if self._state is not None:
                _logger.error("no token of token_file is valid until the file is fixed: %s", error)
            self._tokens = ()
        self._state = state
        return self._tokens

    def _file_state(self) -> tuple[int, int, int] | None:
        """Return values that change when the file is written or replaced."""
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[Token, ...]:
        lines = self._path.read_text("utf-8", "replace").splitlines()
        tokens = [line for line in lines if not line.lstrip().startswith("#")]
        return _parse(tokens, f"token_file {self._path}")


def _parse(entries: Iterable[str], source: str) -> tuple[Token, ...]:
    """Read tokens with or without a name. None is repeated in an error: it is a secret."""
    stripped = [entry.strip() for entry in entries if entry.strip()]
    if not stripped:
        raise TokenError(f"{source} must hold at least one token; got none")
    return tuple(_token(entry, f"{source}, number {n}") for n, entry in enumerate(stripped, 1))


def _token(entry: str, place: str) -> Token:
    named = _NAMED.fullmatch(entry)
    name, token = named.groups() if named else (UNNAMED, entry)
    if not _TOKEN.fullmatch(token):
        raise TokenError(
            f"{place} must be a token of letters, digits and . _ ~ + / - with = at its end, or "
            "name:token, a name of letters, digits and . _ -; it has other characters"
        )
    if len(token) < MIN_TOKEN_LENGTH:
        raise TokenError(
            f"{place} must be a token of at least {MIN_TOKEN_LENGTH} characters, such as "
            f"`openssl rand -hex 32` makes; it has {len(token)}"
        )
    return Token(name, _digest(token))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="Needed if the service is configured with tokens.",
)


async def require_token(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Reject a request without a valid token, with 401. A dependency of guarded routes.

    A request over the rate limit of its token's name is rejected with 429.
    """
    guard: Guard = request.app.state.guard
    if not guard.is_on:
        return
    # RFC 6750, section 3: no error code if the client sent no token.
    if credentials is None:
        note(request.scope, login="missing")
        raise HTTPException(401, "A bearer token is needed.", {"WWW-Authenticate": "Bearer"})
    caller = guard.caller_of(credentials.credentials)
    if caller is None:
        note(request.scope, login="invalid")
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise HTTPException(401, "The bearer token is not valid.", challenge)
    note(request.scope, caller=caller)
    if wait_s := guard.wait_s(caller):
        retry = {"Retry-After": str(math.ceil(wait_s))}
        raise HTTPException(429, "This token sends more requests than it may.", retry)


async def check_token(request: Request) -> None:
    """As `require_token`, for a route whose dependencies FastAPI does not call."""
    await require_token(request, await _bearer(request))
