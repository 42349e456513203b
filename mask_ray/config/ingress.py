"""Settings of the HTTP entrance."""

from pydantic import Field

from mask_ray.config.base import Settings


class IngressSettings(Settings):
    """Print the environment in which Ray and Serve are to start, as a shell's export lines.

    eval "$(python -m mask_ray.ingress)"
    """

    haproxy: bool = Field(
        True, description="Serve through HAProxy; without it, through Ray's Python proxy."
    )
