"""The photos of a comparison, split as the project splits them, for peers that don't use Ray."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import sources, splits

# A file and the index of its class.
Labelled = tuple[str, int]


@dataclass(frozen=True)
class Split:
    """Readable photos. Nobody trains or validates on those of the test split."""

    class_names: list[str]
    train: list[Labelled]
    val: list[Labelled]
    test: list[Labelled]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))


def split(folder: Path, settings: DataSettings) -> Split:
    """The split that `mask_ray.data.load` makes of a folder with a sub-folder for each class."""
    labelled = sources.list_labelled(str(folder))
    files = splits.of_files(labelled, settings)
    rows: dict[str, list[Labelled]] = {name: [] for name in data.SPLITS}
    paths = labelled.reader.names(files)
    for path, row in zip(paths, files.to_pylist(), strict=True):
        rows[row["split"]].append((path, row["label"]))
    return Split(labelled.class_names, **rows)
