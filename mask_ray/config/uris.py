"""URIs whose text never holds a secret: what is printed, stored, pickled or compared is clean.

Only `Uri.full` has users, passwords and queries, for the code that opens the address. They come
from the text itself, or by name: `${NAME}` stands for an environment variable, and stays in the
clean text, so that what is stored can be opened again.
"""

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from mask_ray.config.base import MaskRayError, home

HIDDEN = "***"

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*$")
# What pyarrow's stores take in a query; none is secret.
_HARMLESS = frozenset(
    (
        "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "buffer_size",
        "endpoint_override", "force_virtual_addressing", "project_id", "region", "replication",
        "retry_limit_seconds", "scheme",
    )
)  # fmt: skip
# `container@account` and `user@host`; without a password it is an address.
_USER_IS_ADDRESS = frozenset(("abfs", "abfss", "hdfs", "viewfs", "wasb", "wasbs"))
# Shorter ones would be found in many words.
_MIN_SECRET_LENGTH = 3


class UriError(MaskRayError):
    """The secrets of a URI are not at hand; the message says which and what to do."""


class Uri(str):
    """One or several addresses, one a line; as text without secrets, see the module.

    Args:
        text: Addresses, or other texts such as paths, which stay as they are.
    """

    def __new__(cls, text: str) -> "Uri":
        """Return the text itself if it is one already."""
        if isinstance(text, cls):
            return text
        uri = super().__new__(cls, "\n".join(map(_clean, text.split("\n"))))
        uri._given = text
        return uri

    _given: str

    @classmethod
    def join(cls, uris: "Iterable[str]") -> "Uri":
        """Put addresses into one text, one a line, with their secrets."""
        return cls("\n".join(cls(uri)._given for uri in uris))

    def lines(self) -> "list[Uri]":
        """Return each address, with its secrets."""
        return [Uri(line) for line in map(str.strip, self._given.split("\n")) if line]

    @property
    def full(self) -> str:
        """The address as it is opened, with the values of `${NAME}`. Never print or store it.

        Raises:
            UriError: a variable is not set, or secrets were left out when the text was stored.
        """
        for line in self._given.split("\n"):
            if "://" in line and HIDDEN in _secret_parts(line):
                raise UriError(
                    f"{_clean(line)} was stored without its secrets: give the address again, or "
                    "let it name an environment variable: ${NAME} in place of each secret"
                )
        return "\n".join(map(_expand, self._given.split("\n")))

    @property
    def bare(self) -> str:
        """The addresses without user, password and query, for messages."""
        return "\n".join(map(_bare, self._given.split("\n")))

    def with_secrets_of(self, *others: str | None) -> "Uri":
        """Return these addresses, with the secrets of those of `others` that have the same text."""
        known = {str(line): line for other in others if other for line in Uri(other).lines()}
        return Uri.join(known.get(str(line), line) for line in self.lines())

    def scrub(self, text: str) -> str:
        """Remove the secrets from a text of somebody else, such as a library's error."""
        try:
            full = self.full
        except UriError:
            full = self._given
        secrets = {part for line in full.split("\n") for part in _secret_parts(line)}
        secrets |= {unquote(secret) for secret in secrets}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _MIN_SECRET_LENGTH:
                text = text.replace(secret, HIDDEN)
        return text

    def __reduce__(self) -> Any:
        return Uri, (str(self),)

    def __copy__(self) -> "Uri":
        return self

    def __deepcopy__(self, _: Any) -> "Uri":
        return self


def revealed(text: str) -> str:
    """Return `Uri.full`; any other text as it is, since nobody vouches for what it names."""
    return text.full if isinstance(text, Uri) else text


def tracking_uri() -> Uri:
    """Return MLflow's store: `MLFLOW_TRACKING_URI`, or an SQLite file under `home()`."""
    return Uri(os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri())


def local_tracking_uri() -> str:
    """Return the URI of the SQLite file under `home()`."""
    return f"sqlite:///{home() / 'mlflow.db'}"


def _expand(line: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise UriError(f"{_clean(line)} names the environment variable {match[1]}; it is unset")
        return found

    return _VARIABLE.sub(value, line) if "://" in line else line


def _split(line: str) -> tuple[str, str, str, str, str]:
    """Return scheme, user and password, host and path, query, and fragment."""
    scheme, _, rest = line.partition("://")
    if _has_raw_password(rest):
        user, _, rest = rest.rpartition("@")
        return scheme, user, *_split(f"://{rest}")[2:]
    address, _, fragment = rest.partition("#")
    address, _, query = address.partition("?")
    netloc, slash, path = address.partition("/")
    user, _, host = netloc.rpartition("@")
    return scheme, user, f"{host}{slash}{path}", query, fragment


def _has_raw_password(rest: str) -> bool:
    """Whether a password has a / ? or # that should have been quoted: a secret all the same."""
    head = re.split("[/?#]", rest, maxsplit=1)[0]
    host, colon, port = head.rpartition(":")
    is_port = port.isdecimal() or port == "" or head.startswith("[")
    return "@" in rest and "@" not in head and bool(host and colon) and not is_port


def _is_uri(line: str) -> bool:
    scheme, colon, _ = line.strip().partition("://")
    return bool(colon and _SCHEME.match(scheme) and scheme != "file")


def _clean(line: str) -> str:
    if not _is_uri(line):
        return line
    scheme, user, rest, query, fragment = _split(line.strip())
    cleaned = "&".join(map(_clean_pair, query.split("&")))
    shown_user = user if _is_harmless_user(scheme, user) else HIDDEN
    shown_fragment = fragment if fragment.startswith("sha256=") else HIDDEN
    return (
        f"{scheme}://"
        + (f"{shown_user}@" if user else "")
        + rest
        + (f"?{cleaned}" if query else "")
        + (f"#{shown_fragment}" if fragment else "")
    )


def _bare(line: str) -> str:
    if not _is_uri(line):
        return line
    scheme, _, rest, _, fragment = _split(line.strip())
    return f"{scheme}://{rest}" + (f"#{fragment}" if fragment.startswith("sha256=") else "")


def _is_named(text: str) -> bool:
    """Whether nothing but names of variables is in it."""
    return not text or re.fullmatch(rf"(?:{_VARIABLE.pattern}|:)+", text) is not None


def _is_harmless_user(scheme: str, user: str) -> bool:
    return _is_named(user) or (scheme in _USER_IS_ADDRESS and ":" not in user)


def _is_harmless_pair(pair: str) -> bool:
    key, equals, value = pair.partition("=")
    return _is_named(value if equals else key) or (key in _HARMLESS and "@" not in value)


def _clean_pair(pair: str) -> str:
    key, equals, _ = pair.partition("=")
    if _is_harmless_pair(pair):
        return pair
    return f"{key}={HIDDEN}" if equals else HIDDEN


def _secret_parts(line: str) -> list[str]:
    if not _is_uri(line):
        return []
    scheme, user, _, query, fragment = _split(line.strip())
    parts = [] if _is_harmless_user(scheme, user) else [user, *user.split(":")]
    pairs = [pair for pair in query.split("&") if not _is_harmless_pair(pair)]
    parts += [pair.partition("=")[2] or pair for pair in pairs]
    return parts if fragment.startswith("sha256=") or not fragment else [*parts, fragment]
