"""Search for good hyperparameters of a training run. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import TuneSettings


def tune(settings: TuneSettings) -> dict[str, Any]:
    """Search for settings; imports are here so that bad settings fail at once."""
    from mask_ray.tuning import search

    return search.search_settings(settings)


def stored_settings(run_id: str) -> dict[str, Any]:
    """Return the settings of the search to resume."""
    from mask_ray.tuning import search

    return search.stored_settings(run_id)


if __name__ == "__main__":
    cli.main(TuneSettings, tune, stored_settings)
