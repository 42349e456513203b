"""Print the changelog of a release; fail if tag, package and changelog name different versions.

python .github/release_notes.py v0.2.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Check the tag of the command line and print the notes."""
    (tag,) = sys.argv[1:]
    sys.path.insert(0, str(ROOT))
    from mask_ray import __version__

    if tag != f"v{__version__}":
        sys.exit(f"the tag must be v{__version__}, as mask_ray.__version__ says; got {tag}")
    print(notes((ROOT / "CHANGELOG.md").read_text(), __version__))


def notes(changelog: str, version: str) -> str:
    """Return the section of a version, which must be the newest one that is dated."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    dated = [section for section in sections if not section.startswith("[Unreleased]")]
    heading, _, body = dated[0].partition("\n")
    if not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", heading.strip()):
        sys.exit(f"CHANGELOG.md must begin with [{version}] and its date; got {heading}")
    return body.strip()


if __name__ == "__main__":
    main()
