"""Inspect a data set before training on it, and write `report.html` and `report.json`.

The first pass decodes every image, small, and fills flat arrays and counts. The second one fetches
names and thumbnails of the few images that the report shows. A few hundred bytes are kept for each
image, so millions can be inspected. The files are never changed.
"""

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from mask_ray import data, reports
from mask_ray.config import DataSettings, InspectSettings, TrainSettings
from mask_ray.data import sources
from mask_ray.inspection import mislabelled
from mask_ray.inspection.findings import (
    Chosen,
    Findings,
    Group,
    Picture,
    count,
    fetch_pictures,
    unreadable,
)
from mask_ray.inspection.stock import take_stock
from mask_ray.progress import say

# Pictures are compared as a training of default size does.
_IMAGE_SIZE: int = TrainSettings.model_fields["image_size"].default


def inspect_data(settings: InspectSettings) -> dict[str, Any]:
    """Inspect a data set and write the report. Ray must be running.

    Returns:
        The figures of `report.json`, and the path of the report.

    Raises:
        data.DataError: the data cannot be read, or has fewer than two classes.
        pretrained.WeightsError: the backbone weights cannot be read.
    """
    findings = inspect(settings, settings.backbone_weights)
    settings.output.mkdir(parents=True, exist_ok=True)
    report = settings.output / "report.html"
    report.write_text(html(settings.data, findings))
    content = as_json(findings)
    (settings.output / "report.json").write_text(json.dumps(content, indent=2))
    say(f"report: {report}")
    return findings.figures | {"report": str(report)}


def inspect(
    settings: DataSettings,
    backbone_weights: str = "none",
    alpha: float = 1.0,
    image_size: int = _IMAGE_SIZE,
) -> Findings:
    """Inspect every image of `settings.data`.

    Args:
        settings: Where the images are, and their limits.
        backbone_weights: `none`, `imagenet` or the path of an .h5 file.
        alpha: Width multiplier of these weights.
        image_size: Image size of the training, at which pictures are compared.

    Raises: as `inspect_data`.
    """
    started = time.perf_counter()
    source = data.open_source(settings, data.spare_cpus())
    stock = take_stock(source.dataset, source.num_files, settings, image_size)
    inventory = stock.inventory
    groups = replace(inventory, given_groups=np.zeros_like(inventory.given_groups)).groups()
    suspects = mislabelled.find(source.dataset, inventory, settings, backbone_weights, alpha)
    chosen = Chosen.of(inventory, groups, len(source.class_names), suspects)
    pictures = fetch_pictures(source.dataset, chosen.digests(inventory), settings)
    figures = count(stock, groups, source.class_names)
    seconds = time.perf_counter() - started
    figures |= {
        "num_suspects": None if suspects is None else len(suspects),
        "seconds": round(seconds, 2),
        "images_per_second": round(source.num_files / seconds, 1),
    }
    return chosen.findings(inventory, source.class_names, figures | unreadable(stock), pictures)


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the figures, and the files that the report shows."""

    def describe(groups: list[Group]) -> list[dict[str, Any]]:
        return [
            {"num_files": group.num_files, "files": [_file(p, findings) for p in group.files]}
            for group in groups
        ]

    return findings.figures | {
        "largest_groups": describe(findings.groups),
        "conflicts": describe(findings.conflicts),
        "suspects": [
            _file(picture, findings) | {"confidence_in_label": round(confidence, 4)}
            for picture, confidence in findings.suspects
        ],
    }


def _file(picture: Picture, findings: Findings) -> dict[str, Any]:
    return {"path": picture.path, "label": findings.class_names[picture.label]}


def html(source: str, findings: Findings) -> str:
    """Render the report as one self-contained HTML file."""
    return reports.render(
        "inspection.html.j2",
        title="What the data holds",
        subtitle=sources.shown(source),
        findings=findings,
        figures=findings.figures,
        uri=reports.data_uri,
    )
