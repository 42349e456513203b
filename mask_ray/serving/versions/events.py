"""What happens to the models of a replica, told to whoever counts it.

Plain values and a Protocol: metrics are made of them elsewhere.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

NotComparedReason = Literal["busy", "failed"]


@dataclass(frozen=True)
class Refusal:
    """A version that an alias names and that is not served, and why."""

    alias: str
    version: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Champion's and challenger's answers to one image.

    Args:
        champion: Version.
        challenger: Version.
        agrees: Whether both find the same class likeliest.
        difference: The largest difference between their probabilities of a class, in 0..1.
    """

    champion: str
    challenger: str
    agrees: bool
    difference: float


class ModelEvents(Protocol):
    """Called from several threads; what it raises is logged and goes no further."""

    def switched(self, alias: str, version: str | None) -> None:
        """The replica answers with this version from now on; None: with none for this alias."""

    def refused(self, refusal: Refusal) -> None:
        """A version is not served. Told once, until the alias has moved."""

    def compared(self, comparison: Comparison) -> None:
        """Both models have answered an image."""

    def not_compared(self, reason: NotComparedReason) -> None:
        """An image was to be compared, but there was too much to do, or a model failed."""
