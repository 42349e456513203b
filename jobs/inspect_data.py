"""Inspect a data set before training on it. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import InspectSettings


def inspect(settings: InspectSettings) -> dict[str, Any]:
    """Inspect. Heavy modules are imported only after the settings are valid."""
    from mask_ray.inspection.run import inspect_data

    return inspect_data(settings)


if __name__ == "__main__":
    cli.main(InspectSettings, inspect)
