"""Make a version of a model its champion, by rule or by force, or roll back. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config.promote import PromoteSettings


def promote(settings: PromoteSettings) -> dict[str, Any]:
    """Run the job; heavy imports wait until the settings are known to be valid."""
    from mask_ray.evaluation import promotion
    from mask_ray.training.resume import stored_settings

    return promotion.promote_or_roll_back(settings, stored_settings)


if __name__ == "__main__":
    cli.main(PromoteSettings, promote)
