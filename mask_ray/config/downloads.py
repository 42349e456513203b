"""Limits of what is downloaded and unpacked, from the environment of the cluster.

They are not flags: the operator of the machines sets them, not the user who names a source.
"""

import os
from typing import Self

from pydantic import ConfigDict, Field, ValidationError

from mask_ray.config.base import MaskRayError, Settings, explain


class DownloadLimits(Settings):
    """Limits of one archive that is downloaded, and of the disk that it is unpacked to."""

    model_config = ConfigDict(populate_by_name=True)

    max_bytes: int = Field(
        256 * 2**30,
        ge=1,
        alias="MASK_RAY_DOWNLOAD_MAX_BYTES",
        description="Most bytes of one download.",
    )
    timeout_s: float = Field(
        6 * 3600,
        gt=0,
        allow_inf_nan=False,
        alias="MASK_RAY_DOWNLOAD_TIMEOUT_S",
        description="Time limit of one download with all its attempts, in seconds.",
    )
    reserve_bytes: int = Field(
        2**30,
        ge=0,
        alias="MASK_RAY_DOWNLOAD_RESERVE_BYTES",
        description="Bytes of the disk that stay free, also when unpacking.",
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables; an empty one counts as unset.

        Raises:
            MaskRayError: a value is not allowed; the message names the variable.
        """
        variables = [str(field.alias) for field in cls.model_fields.values()]
        given = {name: value for name in variables if (value := os.environ.get(name))}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise MaskRayError(explain(error)) from None
