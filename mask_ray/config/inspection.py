"""Settings of an inspection of a data set."""

from pathlib import Path

from pydantic import Field

from mask_ray.config.data import DataSettings


class InspectSettings(DataSettings):
    """Report what a data set holds, before training on it.

    Counts by class, format and size; unreadable files; copies and near-copies; pictures under two
    labels; with backbone weights, files whose label is probably wrong.
    """

    output: Path = Field(description="Folder for report.html and report.json; created if missing.")
    backbone_weights: str = Field(
        "none",
        min_length=1,
        description="imagenet, or the path of a .h5 file, to look for wrong labels too, with "
        "models trained on features of the other images. none: skip this check.",
    )
