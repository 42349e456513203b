"""Writes the access log: one line of JSON for each request, in one file for each replica.

Not to standard output: Ray's log monitor would send each line to drivers, which costs more than
writing it.
"""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from mask_ray.serving.observability.exchanges import Exchange

_MAX_TEXT_LENGTH = 256
_MAX_FILE_BYTES = 64 * 2**20


class AccessLog:
    """Writes each finished exchange as a line; an observer of `Exchanges`.

    A line has `time` (RFC 3339, UTC, start of the request), `request_id`, `method`, `path` without
    the query, `status`, `duration_ms`, `bytes_in`, `bytes_out` and `client`. If known, it also has
    `forwarded_for`, `model_version`, `caller` (name of the token), `login` (why there was no valid
    token: `missing` or `invalid`) and other notes of the app.

    Args:
        path: The file; a missing folder is created. At 64 MiB it is renamed to `path.1`, and
            earlier files to `path.2` to `path.4`.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._logger = logging.Logger("mask_ray.access", logging.INFO)
        handler = RotatingFileHandler(path, maxBytes=_MAX_FILE_BYTES, backupCount=4)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger.addHandler(handler)

    def __call__(self, exchange: Exchange) -> None:
        """Write one line. As with all logging, a failure is printed on standard error."""
        self._logger.info(_line(exchange))


def _line(exchange: Exchange) -> str:
    fields = {
        "time": _rfc3339(exchange.started_at),
        "request_id": exchange.request_id,
        "method": exchange.method[:_MAX_TEXT_LENGTH],
        "path": exchange.path[:_MAX_TEXT_LENGTH],
        "status": exchange.status,
        "duration_ms": round(exchange.duration_s * 1000, 3),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "client": exchange.client,
    }
    if exchange.forwarded_for:
        fields["forwarded_for"] = exchange.forwarded_for[:_MAX_TEXT_LENGTH]
    # ASCII with control characters escaped, so that no path can start a new line.
    return json.dumps(fields | exchange.notes, separators=(",", ":"))


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
