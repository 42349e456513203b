"""Settings of the command behind `make serve`."""

from pathlib import Path

from pydantic import Field

from mask_ray.config.ingress import IngressSettings


class ServeCommandSettings(IngressSettings):
    """Serve a model on this machine until Ctrl-C, and say when and where it answers.

    Uses the Ray that is running, or else starts one, which ends with the service.
    """

    serve_config: Path = Field(
        Path("serve_config.yaml"), description="Configuration of Serve and of the application."
    )
