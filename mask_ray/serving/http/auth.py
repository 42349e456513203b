"""Who may ask: clients that show one of the tokens, where any are configured.

Tokens come from the environment and from a file, and several are valid at once: add the new one,
give it to the clients, then remove the old one. The file is read again when it changes, so
nothing restarts for that. Tokens are kept as digests, and never logged or repeated.
"""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from mask_ray.config import MaskRayError

TOKENS_VARIABLE = "MASK_RAY_TOKENS"

_logger = logging.getLogger(__name__)

# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class TokenError(MaskRayError):
    """The tokens cannot be used as they are configured."""


class Guard:
    """Knows the valid tokens. Once it is on, it stays on, whatever becomes of the file.

    Raises:
        TokenError: `MASK_RAY_TOKENS` or the file holds no token, or what can be none; or the file
            cannot be read.
    """

    def __init__(self, token_file: Path | None = None) -> None:
        variable = os.environ.get(TOKENS_VARIABLE, "")
        self._fixed = _digests(variable.split(","), TOKENS_VARIABLE) if variable else ()
        self._file = None if token_file is None else _TokenFile(token_file)

    @property
    def is_on(self) -> bool:
        """Whether a token is asked for at all."""
        return bool(self._fixed) or self._file is not None

    def admits(self, token: str) -> bool:
        """Whether the token is valid now. Takes the same time whichever it is, and if none."""
        digests = self._fixed + (() if self._file is None else self._file.digests())
        shown = _digest(token)
        # Not any, which a match would spare the comparisons after it.
        return sum(hmac.compare_digest(digest, shown) for digest in digests) > 0


class _TokenFile:
    """One token a line; empty lines and those that begin with # are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = self._look()
            self._digests = self._read()
        except OSError as error:
            raise TokenError(f"token_file {path} cannot be read: {error.strerror}") from None

    def digests(self) -> tuple[bytes, ...]:
        """Those in the file now; none while it cannot be used, for it may be there to revoke."""
        try:
            state = self._look()
            if state != self._state:
                self._digests = self._read()
        except (OSError, TokenError) as error:
            state = None
            if self._state is not None:
                _logger.error("No token of token_file is valid until it is mended: %s", error)
            self._digests = ()
        self._state = state
        return self._digests

    def _look(self) -> tuple[int, int, int] | None:
        """What differs once the file is written again or replaced."""
        seen = self._path.stat()
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def _read(self) -> tuple[bytes, ...]:
        lines = self._path.read_text("utf-8", "replace").splitlines()
        tokens = [line for line in lines if not line.lstrip().startswith("#")]
        return _digests(tokens, f"token_file {self._path}")


def _digests(tokens: Iterable[str], source: str) -> tuple[bytes, ...]:
    stripped = [token.strip() for token in tokens if token.strip()]
    if not stripped:
        raise TokenError(f"{source} must hold at least one token; got none")
    for number, token in enumerate(stripped, 1):
        # Not repeated: it is a secret, if a mistyped one.
        if not _TOKEN.fullmatch(token):
            raise TokenError(
                f"{source} must hold tokens of letters, digits and . _ ~ + / - with = at their "
                f"ends; number {number} has other characters"
            )
    return tuple(map(_digest, stripped))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def build_guard(token_file: Path | None) -> Guard:
    """The guard of a replica, which says in the log where it lets everyone in.

    Raises:
        TokenError: as `Guard`.
    """
    guard = Guard(token_file)
    if not guard.is_on:
        _logger.warning(
            "No token is configured: whoever reaches this endpoint is answered. Set %s or "
            "token_file.",
            TOKENS_VARIABLE,
        )
    return guard


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="Needed where the service is configured with tokens.",
)


async def require_token(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Dependency of guarded routes: refuse a request without a valid token, with 401."""
    guard: Guard = request.app.state.guard
    if not guard.is_on:
        return
    # RFC 6750, section 3: no error is named to a client that showed nothing.
    if credentials is None:
        raise HTTPException(401, "A bearer token is needed.", {"WWW-Authenticate": "Bearer"})
    if not guard.admits(credentials.credentials):
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise HTTPException(401, "The bearer token is not valid.", challenge)


async def check_token(request: Request) -> None:
    """What `require_token` does, for a route that FastAPI does not call dependencies for."""
    await require_token(request, await _bearer(request))
