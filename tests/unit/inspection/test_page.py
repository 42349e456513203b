"""The page of an inspection, of findings made by hand."""

from typing import Any

from mask_ray.inspection.findings import Findings, Group, Picture
from mask_ray.inspection.run import html

NAMES = ["with_mask", "without_mask"]


def figures() -> dict[str, Any]:
    counts = [
        *("num_images", "num_bytes", "num_unreadable", "num_exact_copies", "num_near_groups"),
        *("num_images_in_groups", "num_groups_under_two_labels", "num_suspects"),
        "num_files_under_two_labels",
    ]
    return dict.fromkeys(counts, 3) | {
        "classes": dict.fromkeys(NAMES, 3),
        "formats": {"JPEG": dict.fromkeys(NAMES, 3)},
        "sizes": {"64 to 127 px": dict.fromkeys(NAMES, 3)},
        "unreadable": {"image is empty": 3},
        "unreadable_files": {"a.jpg": "image is empty"},
    }


def test_what_is_wrong_stands_before_the_sheets() -> None:
    picture = Picture(path="a.jpg", label=0, jpeg=b"1")
    groups = [Group(num_files=2, files=[picture, picture])]
    findings = Findings(NAMES, figures(), [[picture]] * 2, groups, groups, [(picture, 0.01)])

    page = html("photos", findings)

    order = [
        page.index(heading)
        for heading in (
            "Unreadable files",
            "One picture under two labels",
            "Labels that the other images contradict",
            "Copies and near-copies",
            "<h2>with_mask</h2>",
            "<h2>without_mask</h2>",
        )
    ]
    assert order == sorted(order)


def test_sizes_are_short_enough_for_one_line() -> None:
    page = html("photos", Findings(NAMES, figures(), [[]] * 2, [], [], []))

    assert "Longer side, px" in page and ">64\u2013127<" in page
