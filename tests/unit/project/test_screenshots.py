"""Pictures of pages keep the colours of the page, whatever photos are on it."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.project import ROOT

PAGE, ACCENT = (244, 246, 249), (36, 89, 196)


@pytest.fixture(scope="module")
def screenshots() -> Any:
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs/screenshots.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("num_colours", [256, 64])
def test_colours_of_the_page_are_kept_beside_photos(screenshots: Any, num_colours: int) -> None:
    page = np.full((300, 300, 3), PAGE, np.uint8)
    page[10:20, 10:60] = ACCENT
    page[100:] = np.random.default_rng(0).integers(0, 120, (200, 300, 3))

    reduced = screenshots.reduce_colours(Image.fromarray(page), num_colours)

    colours = reduced.convert("RGB")
    assert (colours.getpixel((5, 5)), colours.getpixel((15, 15))) == (PAGE, ACCENT)
    assert len(reduced.getcolors()) <= num_colours
