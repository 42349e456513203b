"""Events about the models of a replica, and the Protocol of what counts them.

Plain values without Ray; `observability.metrics` implements the Protocol.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

NotComparedReason = Literal["busy", "failed"]


@dataclass(frozen=True)
class Refusal:
    """A rejected version that an alias names, and why it is not served."""

    alias: str
    version: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Champion's and challenger's answers to one image.

    Args:
        champion: Version of the champion.
        challenger: Version of the challenger.
        agrees: Whether both have the same most likely class.
        difference: Largest difference between their probabilities of a class, in 0..1.
    """

    champion: str
    challenger: str
    agrees: bool
    difference: float


class ModelEvents(Protocol):
    """Receives events, from several threads. What it raises is logged and ignored."""

    def switched(self, alias: str, version: str | None) -> None:
        """The replica serves this version for the alias from now on; None: no version."""

    def refused(self, refusal: Refusal) -> None:
        """A version was rejected. Called once, until the alias moves."""

    def compared(self, comparison: Comparison) -> None:
        """Both models have answered an image."""

    def not_compared(self, reason: NotComparedReason) -> None:
        """An image was not compared: too many were waiting, or a model failed."""
