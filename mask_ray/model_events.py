"""What happens to the models of a replica, told to whoever counts it.

Plain values and a Protocol: metrics are made of them elsewhere.
"""

import threading
from collections import Counter
from collections.abc import Mapping
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


class ModelEventCounts:
    """Counts of events since the replica started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._total_difference = 0.0

    def switched(self, alias: str, version: str | None) -> None:
        """Count it."""
        self._add("switched")

    def refused(self, refusal: Refusal) -> None:
        """Count it."""
        self._add("refused")

    def compared(self, comparison: Comparison) -> None:
        """Count it, and whether the answers agreed."""
        with self._lock:
            self._counts["compared"] += 1
            self._counts["agreed"] += comparison.agrees
            self._total_difference += comparison.difference

    def not_compared(self, reason: NotComparedReason) -> None:
        """Count it by reason."""
        self._add(f"not_compared_{reason}")

    def counts(self) -> Mapping[str, int]:
        """`switched`, `refused`, `compared`, `agreed`, `not_compared_busy`, `..._failed`."""
        with self._lock:
            return dict(self._counts)

    def mean_difference(self) -> float | None:
        """Mean over the compared images of `Comparison.difference`; None: there were none."""
        with self._lock:
            num_compared = self._counts["compared"]
            return self._total_difference / num_compared if num_compared else None

    def _add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
