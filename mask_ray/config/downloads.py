"""Limits of what is downloaded and unpacked, from the environment of the cluster.

They are no flags: whoever runs the machines sets them, not whoever names a source.
"""

import os
from typing import Self

from pydantic import Field, ValidationError

from mask_ray.config.base import MaskRayError, Settings, explain

PREFIX = "MASK_RAY_DOWNLOAD_"


class DownloadLimits(Settings):
    """Limits of one archive that is downloaded, and of the disk that it is unpacked to."""

    max_bytes: int = Field(256 * 2**30, ge=1, description="Most bytes of one download.")
    timeout_s: float = Field(
        6 * 3600,
        gt=0,
        allow_inf_nan=False,
        description="Time limit of one download with all its attempts, in seconds.",
    )
    reserve_bytes: int = Field(
        2**30, ge=0, description="Bytes of the disk that stay free, also when unpacking."
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read `MASK_RAY_DOWNLOAD_MAX_BYTES` and so on; an empty variable counts as unset.

        Raises:
            MaskRayError: a value is not allowed; the message names the variable.
        """
        variables = {name: f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        values = {name: os.environ.get(variable) for name, variable in variables.items()}
        try:
            return cls.model_validate({name: value for name, value in values.items() if value})
        except ValidationError as error:
            raise MaskRayError(f"in {PREFIX}...: {explain(error)}") from None
