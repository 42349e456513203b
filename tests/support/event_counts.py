"""Counts what happens to models, where nothing exports it."""

import threading
from collections import Counter
from collections.abc import Mapping

from mask_ray.serving.versions.events import Comparison, NotComparedReason, Refusal


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
