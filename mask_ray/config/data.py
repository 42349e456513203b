"""Where images come from, and how they are split."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from mask_ray.config.images import ImageLimits
from mask_ray.config.uris import Uri

SplitName = Literal["train", "val", "test"]


def _check_source(sources: Any) -> Uri:
    given = Uri.join(map(str, sources)) if isinstance(sources, list | tuple) else sources
    if not isinstance(given, str):
        raise ValueError(f"must be a valid string; got {given!r}")
    lines = Uri(given).lines()
    if not lines:
        raise ValueError("must be a source of images or synthetic[:N]; got an empty string")
    for line in lines:
        if line.partition(":")[0] == "synthetic":
            _check_synthetic(line, alone=len(lines) == 1)
    return Uri.join(lines)


def _check_synthetic(source: str, alone: bool) -> None:
    if not re.fullmatch(r"synthetic(:[1-9]\d*)?", source):
        raise ValueError(
            f"must be a source of images, synthetic or synthetic:N with N >= 1; got {source}"
        )
    if not alone:
        raise ValueError(f"must be {source} alone, or sources of files; got both")


@dataclass(frozen=True)
class Repeatable:
    """Marks a field whose flag may be repeated."""


# Several sources are one text, one a line, so that code that only passes it on stays the same. The
# text is a `Uri`: without secrets for all but those who open it.
Source = Annotated[str, PlainValidator(_check_source), Repeatable()]


SOURCE_DESCRIPTION = (
    "Folder with one sub-folder of images per class; zip or tar archive of one, or its http(s) URL "
    "(#sha256=... checks it); CSV or Parquet manifest with columns path, label[, split][, group]; "
    "folder with metadata.csv or .jsonl; any of these at a URI such as s3://bucket/folder; or "
    "synthetic[:N] to draw N faces (default 2000). May be repeated: sources are united by class "
    "name."
)


class DataSettings(ImageLimits):
    """Sources of images, and how they are split."""

    data: Source = Field(description=SOURCE_DESCRIPTION)
    val_fraction: float = Field(
        0.15, gt=0, lt=1, description="Share of images held out to select the best epoch."
    )
    test_fraction: float = Field(
        0.15, gt=0, lt=1, description="Share of images held out for the final metrics."
    )
    test_data: Source | None = Field(
        None,
        description="Another source with the same classes, used as the test split. All images of "
        "data are then used for training and validation, except pictures that test_data has too.",
    )
    resolve_conflicts: Literal["refuse", "drop", "move"] = Field(
        "refuse",
        description="What to do if a source gives different splits to files of one picture or "
        "group. refuse: stop. drop: of each such group, use only the files in test, or in val if "
        "none is in test. move: put the whole group into test, or into val if none is in test.",
    )
    seed: int = Field(0, ge=0, description="Seed of drawn images, initial weights and shuffling.")

    @model_validator(mode="after")
    def _fractions_leave_a_train_split(self) -> Self:
        held_out = self.val_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be below 1; got {held_out:g}, "
                "which leaves no images to train on"
            )
        return self
