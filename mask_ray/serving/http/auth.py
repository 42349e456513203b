"""Bearer tokens: if any are configured, clients must send one of them.

Tokens come from the environment and from a file. Several are valid at once, so that they can be
changed one after the other: add the new one, give it to clients, remove the old one. The file is
read again when it changes, without a restart. Tokens are kept as digests, and never logged or
repeated.
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
    """The configured tokens cannot be used."""


class Guard:
    """Checks tokens. If tokens are configured, it stays on even when the file is lost.

    Raises:
        TokenError: `MASK_RAY_TOKENS` or the file holds no token or a malformed one, or the file
            cannot be read.
    """

    def __init__(self, token_file: Path | None = None) -> None:
        variable = os.environ.get(TOKENS_VARIABLE, "")
        self._fixed = _digests(variable.split(","), TOKENS_VARIABLE) if variable else ()
        self._file = None if token_file is None else _TokenFile(token_file)

    @property
    def is_on(self) -> bool:
        """Whether requests need a token."""
        return bool(self._fixed) or self._file is not None

    def admits(self, token: str) -> bool:
        """Whether the token is valid now. Takes the same time for every token."""
        digests = self._fixed + (() if self._file is None else self._file.digests())
        received = _digest(token)
        # sum and not any, which would stop at the first match.
        return sum(hmac.compare_digest(digest, received) for digest in digests) > 0


class _TokenFile:
    """A file with one token a line. Empty lines and lines that start with # are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = self._file_state()
            self._digests = self._read()
        except OSError as error:
            raise TokenError(f"token_file {path} cannot be read: {error.strerror}") from None

    def digests(self) -> tuple[bytes, ...]:
        """Digests of the file's current tokens.

        Empty while the file cannot be used: it may have been changed to revoke a token.
        """
        try:
            state = self._file_state()
            if state != self._state:
                self._digests = self._read()
        except (OSError, TokenError) as error:
            state = None
            if self._state is not None:
                _logger.error("no token of token_file is valid until the file is fixed: %s", error)
            self._digests = ()
        self._state = state
        return self._digests

    def _file_state(self) -> tuple[int, int, int] | None:
        """Return values that change when the file is written or replaced."""
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[bytes, ...]:
        lines = self._path.read_text("utf-8", "replace").splitlines()
        tokens = [line for line in lines if not line.lstrip().startswith("#")]
        return _digests(tokens, f"token_file {self._path}")


def _digests(tokens: Iterable[str], source: str) -> tuple[bytes, ...]:
    stripped = [token.strip() for token in tokens if token.strip()]
    if not stripped:
        raise TokenError(f"{source} must hold at least one token; got none")
    for number, token in enumerate(stripped, 1):
        # Not repeated in the message: it is a secret, even if mistyped.
        if not _TOKEN.fullmatch(token):
            raise TokenError(
                f"{source} must hold tokens of letters, digits and . _ ~ + / - with = at their "
                f"ends; number {number} has other characters"
            )
    return tuple(map(_digest, stripped))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def build_guard(token_file: Path | None) -> Guard:
    """Build a replica's guard, and log a warning if no token is configured.

    Raises:
        TokenError: as `Guard`.
    """
    guard = Guard(token_file)
    if not guard.is_on:
        _logger.warning(
            "no token is configured: anyone who can reach this service can use it. Set %s or "
            "token_file.",
            TOKENS_VARIABLE,
        )
    return guard


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="Needed if the service is configured with tokens.",
)


async def require_token(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Reject a request without a valid token, with 401. A dependency of guarded routes."""
    guard: Guard = request.app.state.guard
    if not guard.is_on:
        return
    # RFC 6750, section 3: no error code if the client sent no token.
    if credentials is None:
        raise HTTPException(401, "A bearer token is needed.", {"WWW-Authenticate": "Bearer"})
    if not guard.admits(credentials.credentials):
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise HTTPException(401, "The bearer token is not valid.", challenge)


async def check_token(request: Request) -> None:
    """As `require_token`, for a route whose dependencies FastAPI does not call."""
    await require_token(request, await _bearer(request))
