"""Turns off the usage statistics that libraries collect and send home.

A variable that is set already keeps its value, so users can turn them on.
"""

import os

OFF = {
    # `ray start` would ask, and then send.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}


def turn_off() -> None:
    """Set the variables, for libraries that are imported and processes that are started later."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
