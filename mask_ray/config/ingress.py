"""Settings of the command that prints the environment for Serve's HTTP side."""

from pydantic import Field

from mask_ray.config.base import Settings


class IngressSettings(Settings):
    """Print the environment that Ray and Serve must start with, as export lines for a shell.

    eval "$(python -m mask_ray.ingress)"
    """

    haproxy: bool = Field(
        True, description="Put HAProxy before the replicas, or else Ray's Python proxy."
    )
