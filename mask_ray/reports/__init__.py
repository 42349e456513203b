"""Render HTML reports: a single file each, which needs no network.

Each report is a Jinja template beside this module. It extends `base.html.j2` and shares its style
and the macros of `parts.html.j2`.
"""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def render(template: str, **values: Any) -> str:
    """Render `template` with `values`, which are escaped."""
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
    """Return a data URI of the content, for `src` of an image."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels: NDArray[np.uint8], quality: int = 80) -> bytes:
    """Encode pixels (uint8, RGB or grey) as JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()
