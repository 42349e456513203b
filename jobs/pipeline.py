"""From photos to a served model in one command. See `--help`."""

from typing import Any

from mask_ray import cli
from mask_ray.config import PipelineSettings


def run_pipeline(settings: PipelineSettings) -> dict[str, Any]:
    """Run the job; heavy imports wait until the settings are known to be valid."""
    from mask_ray.pipeline import stages

    return stages.run_pipeline(settings)


def stay() -> None:
    """Keep this process alive while its own Ray serves."""
    from mask_ray.pipeline import stages

    stages.stay_while_serving()


if __name__ == "__main__":
    cli.main(PipelineSettings, run_pipeline)
    stay()
