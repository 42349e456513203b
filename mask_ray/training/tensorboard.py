"""Curves of a run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf


class EventFiles:
    """Event files of the training and the validation images, which TensorBoard overlays.

    Args:
        folder: Of the run. What earlier attempts at it wrote there stays.
    """

    def __init__(self, folder: Path) -> None:
        self._writers = {
            split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "val")
        }

    def add(self, phase: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Points of the curves `PHASE/loss`, `PHASE/accuracy` and so on, on disk at once.

        Args:
            phase: `head`, `finetune` or `scratch`.
            epoch: Counted from 0 over all phases.
            metrics: Those whose names begin with `val_` are of the validation images.
        """
        for name, value in metrics.items():
            writer = self._writers["val" if name.startswith("val_") else "train"]
            with writer.as_default(step=epoch):
                tf.summary.scalar(f"{phase}/{name.removeprefix('val_')}", value)
        for writer in self._writers.values():
            writer.flush()
