"""Images that versions of a registry are compared on, as arrays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow import MlflowClient

from mask_ray.config import PromotionRule
from mask_ray.evaluation.grounds import HeldOutImages, RunImages
from mask_ray.models.predictor import Predictor
from tests.support.mlflow_models import NAME
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE


class Images:
    """What a Dataset gives of images of any size: noise."""

    def __init__(
        self, image_size: int, labels: list[int], numbers: list[int] | None = None
    ) -> None:
        numbers = list(range(len(labels))) if numbers is None else numbers
        self.image = noise(image_size, max(numbers) + 1)[numbers]
        self.label = np.array(labels)
        self.digest = np.array([f"digest {number}" for number in numbers])

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        yield {"image": self.image, "label": self.label, "digest": self.digest}


def rows(image_size: int, labels: list[int], numbers: list[int] | None = None) -> Any:
    return Images(image_size, labels, numbers)


def noise(image_size: int, num_images: int) -> Any:
    rng = np.random.default_rng(1)
    return rng.choice(np.array([0, 255], np.uint8), (num_images, image_size, image_size, 3))


def run_images(labels: list[int], numbers: list[int] | None = None, seen: Any = ()) -> RunImages:
    """What the list of files of a run says: its test split, and the images it was trained on."""
    numbers = list(range(len(labels))) if numbers is None else numbers
    columns = {
        "path": [f"{number}.png" for number in numbers],
        "digest": [f"digest {number}" for number in numbers],
        "label": [CLASS_NAMES[label] for label in labels],
    }
    return RunImages(pa.table(columns), frozenset(f"digest {number}" for number in seen))


class Runs:
    """The images of each version's run: those that versions are compared on, unless set."""

    def __init__(self) -> None:
        self.given = run_images([0, 1])
        self.by_version: dict[str, RunImages] = {}
        self.read: list[int] = []

    def load(self, run_id: str) -> RunImages:
        (version,) = MlflowClient().search_model_versions(f"run_id = '{run_id}'")
        return self.by_version.get(str(version.version), self.given)

    def dataset_of(self, files: pa.Table, class_names: list[str], limits: Any) -> Any:
        numbers = [int(path.partition(".")[0]) for path in files["path"].to_pylist()]
        labels = [class_names.index(name) for name in files["label"].to_pylist()]
        self.read += numbers
        return lambda size: rows(size, labels, numbers)


def tags(version: str) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(NAME, version).tags)


RULE = PromotionRule()


LabelledAs = Callable[..., HeldOutImages]


@dataclass(frozen=True)
class Disputed:
    """Images that version 5 answers rightly, and the others only in part.

    Args:
        narrow: Numbers of the images that version 3 is tested on: it is right on all of them.
        broad: Numbers of those that version 1 is tested on: it is right on all of them.
        labels: Label of every image, by its number.
    """

    narrow: list[int]
    broad: list[int]
    labels: list[int]

    def images(self, numbers: list[int]) -> HeldOutImages:
        labels = [self.labels[number] for number in numbers]
        return HeldOutImages(
            lambda size: rows(size, labels, numbers), list(CLASS_NAMES), f"d{numbers[0]}"
        )

    def run(self, numbers: list[int], seen: Any = ()) -> RunImages:
        return run_images([self.labels[number] for number in numbers], numbers, seen)


def disputed(files: dict[str, Path], narrow: tuple[int, int], broad: tuple[int, int]) -> Disputed:
    """Choose images. `narrow`: how many of them version 1 answers rightly, and how many wrongly;
    `broad`: the same of version 3.
    """
    pixels = noise(IMAGE_SIZE, 1000)
    first, third, truth = (
        Predictor(files[version]).predict(pixels).argmax(axis=1) for version in "135"
    )
    taken: set[int] = set()

    def some(is_right: Any, other_is_right: Any, counts: tuple[int, int]) -> list[int]:
        chosen: list[int] = []
        for wanted, count in zip((True, False), counts, strict=True):
            found = np.flatnonzero(is_right & (other_is_right == wanted)).tolist()
            chosen += [number for number in found if number not in taken][:count]
        assert len(chosen) == sum(counts)
        taken.update(chosen)
        return chosen

    first_is_right, third_is_right = first == truth, third == truth
    narrow_ones = some(third_is_right, first_is_right, narrow)
    return Disputed(narrow_ones, some(first_is_right, third_is_right, broad), truth.tolist())


# The recall of so few images is chance.
ANY_RECALL = PromotionRule(min_recall=0)
