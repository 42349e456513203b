"""Settings of `make demo`."""

from pydantic import Field

from mask_ray.config.base import Settings
from mask_ray.config.data import SOURCE_DESCRIPTION, Source


class DemoSettings(Settings):
    """Train, register, serve and query a model on this machine, then stop what was started."""

    data: Source = Field("synthetic:5000", description=SOURCE_DESCRIPTION)
    backbone_weights: str = Field(
        "none", min_length=1, description="imagenet, none, or the path of an .h5 file."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of the whole network (default: enough to see about 24,000 images "
        "without backbone weights; 3 with them).",
    )
    num_workers: int = Field(2, ge=1, description="Horovod workers.")
    haproxy: bool = Field(
        True, description="Serve through HAProxy, rather than Ray's Python proxy."
    )
    keep: bool = Field(False, description="Keep Ray and the service running at the end.")
