"""Remembers versions that failed health checks, with the versions themselves in the registry.

So they are not tried again by an actor that replaces a lost one, nor by a service that starts. No
Ray and no MLflow here.
"""

import logging
from collections.abc import Callable

from mask_ray.config import MaskRayError

logger = logging.getLogger(__name__)


class KeptRefusals:
    """Why versions are not tried again.

    Args:
        read: Returns the reason that the registry keeps for a version, or None.
        write: Keeps a reason in the registry.
    """

    def __init__(
        self, read: Callable[[str], str | None], write: Callable[[str, str], None]
    ) -> None:
        self._read = read
        self._write = write
        self._reasons: dict[str, str] = {}
        self._unwritten: set[str] = set()

    def add(self, version: str, reason: str) -> None:
        """Keep why a version is refused; if the registry does not answer, write it later."""
        self._reasons[version] = reason
        self._unwritten.add(version)
        self._write_all()

    def knows(self, version: str) -> bool:
        """Return whether a version was refused when it was last looked up."""
        return version in self._reasons

    def reason(self, version: str) -> str | None:
        """Look up why a version is not tried; None: it may be, or may be again."""
        self._write_all()
        try:
            kept = self._read(version)
        except MaskRayError as error:
            logger.warning("what is known of version %s cannot be read: %s", version, error)
            return self._reasons.get(version)
        if kept is not None:
            self._reasons[version] = kept
        elif version not in self._unwritten:
            self._reasons.pop(version, None)
        return self._reasons.get(version)

    def _write_all(self) -> None:
        for version in sorted(self._unwritten):
            try:
                self._write(version, self._reasons[version])
            except MaskRayError as error:
                logger.warning("the refusal of version %s is not kept yet: %s", version, error)
                return
            self._unwritten.remove(version)
