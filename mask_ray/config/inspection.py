"""Settings of an inspection of a data set."""

from pathlib import Path

from pydantic import Field

from mask_ray.config.data import DataSettings


class InspectSettings(DataSettings):
    """Report what a data set holds, before anything is trained on it.

    Counts by class, format and size; unreadable files; copies and near-copies; one picture under
    two labels; with backbone weights, files whose label the others contradict.
    """

    output: Path = Field(description="Folder for report.html and report.json; made if missing.")
    backbone_weights: str = Field(
        "none",
        min_length=1,
        description="imagenet or the path of a .h5 file: look for wrong labels too, by models "
        "trained on the other images' features. none: don't.",
    )
