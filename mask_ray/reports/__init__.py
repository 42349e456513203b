"""Reports for people: one HTML file each, which needs no network and no other file.

Each report is a Jinja template beside this module that extends `base.html.j2`, whose style and
macros (`parts.html.j2`) all of them share.
"""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`, which are escaped."""
    environment = Environment(
        loader=PackageLoader("mask_ray.reports", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.get_template(template).render(values)


def data_uri(content: bytes, media_type: str = "image/jpeg") -> str:
    """An address that is the content, for `src` of an image."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels: NDArray[np.uint8], quality: int = 80) -> bytes:
    """A picture (uint8, RGB or grey) as JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()
