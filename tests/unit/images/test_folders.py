"""Messages name a few files, however many there are."""

import pytest

from mask_ray.images.folders import first_names


@pytest.mark.parametrize(
    ("names", "shown"),
    [(["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c", "d"], "a, b, and 2 more")],
)
def test_the_first_names_are_listed_and_the_others_counted(names: list[str], shown: str) -> None:
    assert first_names(names, 2) == shown
