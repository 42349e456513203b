"""Rows in memory that are read batch by batch, as those of a Ray Dataset are."""

from collections.abc import Iterator

import numpy as np


class InMemory:
    """Columns of one length; `label` is one of them."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.columns["label"]), batch_size):
            yield {k: v[start : start + batch_size] for k, v in self.columns.items()}
