"""The version is the same in the package and in the changelog."""

import re

import mask_ray
from tests.support.project import ROOT


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert versions[0] == mask_ray.__version__
