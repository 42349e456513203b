"""Write the curves of a run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf


class EventFiles:
    """Event files of training and validation metrics, which TensorBoard draws in one chart.

    Args:
        folder: Folder of the run; event files of earlier attempts are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._writers = {
            split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "val")
        }

    def add(self, phase: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add points to the curves `PHASE/loss`, `PHASE/accuracy` and so on, and flush them.

        Args:
            phase: `head`, `finetune` or `scratch`.
            epoch: Epoch, counted from 0 over all phases.
            metrics: Metrics by name; names with `val_` are of the validation images.
        """
        for name, value in metrics.items():
            writer = self._writers["val" if name.startswith("val_") else "train"]
            with writer.as_default(step=epoch):
                tf.summary.scalar(f"{phase}/{name.removeprefix('val_')}", value)
        for writer in self._writers.values():
            writer.flush()
