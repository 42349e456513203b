"""The access log: one line of JSON for each request, on the standard output of its replica.

Ray gathers that output in its log folder and shows it in the dashboard and to the driver.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from mask_ray.exchanges import Exchange

_MAX_TEXT_LENGTH = 256


class AccessLog:
    """Writes exchanges; an observer for `Exchanges`.

    A line has `time` (RFC 3339, UTC, when the request came), `request_id`, `method`, `path`
    without its query, `status`, `duration_ms`, `bytes_in`, `bytes_out`, `client`, and where they
    are known `forwarded_for`, `model_version` and other notes of the application.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._logger = logging.Logger("mask_ray.access", logging.INFO)
        # Not sys.stdout: in a replica that is Serve's, which looks for the caller of each line, a
        # third of a millisecond's work.
        handler = logging.StreamHandler(sys.__stdout__ if stream is None else stream)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger.addHandler(handler)

    def __call__(self, exchange: Exchange) -> None:
        """Write one line. What cannot be written is told on standard error, as by all logging."""
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
    # ASCII, with all control characters escaped: nothing in a path can start a line of its own.
    return json.dumps(fields | exchange.notes, separators=(",", ":"))


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
