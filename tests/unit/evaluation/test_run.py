"""An evaluation says how many of the images count."""

from collections import Counter
from typing import Any

import pytest

from mask_ray import data
from mask_ray.evaluation.run import _about_split


@pytest.mark.parametrize(
    ("trained_on", "advice"),
    [
        ("d1", ""),
        (None, "; --split all counts every image, for data that the model never saw"),
        ("d2", ". The model was trained on other data: --split all counts every image"),
    ],
)
def test_the_share_of_a_split_is_said(trained_on: str | None, advice: str) -> None:
    counts: Any = {"train": Counter(a=1488), "val": Counter(), "test": Counter(a=200, b=32)}
    nothing: Any = None
    images = data.ImageData(nothing, ["a", "b"], data.Summary(counts, "d1", {}), kept=True)
    assert _about_split("test", images, trained_on) == (
        f"evaluating the test split: 232 of 1720 images{advice}"
    )
