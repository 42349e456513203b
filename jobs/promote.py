"""Make a version of a model its champion, by rule or by force, or go back. See `--help`."""

from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from mask_ray import cli
from mask_ray.config import PromoteSettings


class Flags(PromoteSettings):
    """Make a version the champion if it beats the present one, or go back to the one before."""

    version: CliPositionalArg[str | None] = Field(
        None, description=PromoteSettings.model_fields["version"].description
    )


def promote(settings: Flags) -> dict[str, Any]:
    """Import what is heavy only once the settings are known to be good."""
    from mask_ray.evaluation import promotion
    from mask_ray.training.resume import stored_settings

    return promotion.by_hand(settings, stored_settings)


if __name__ == "__main__":
    cli.main(Flags, promote)
