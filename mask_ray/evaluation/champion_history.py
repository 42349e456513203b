"""The champions of a registered model in order, and who made them champion.

Each change appends one tag to the registered model, and none is ever changed. So nothing that
happens to a version, such as its deletion on MLflow's page, damages the history, and two processes
that append at the same time lose nothing.
"""

import getpass
import json
import socket
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mask_ray import ray_internals, tracking

# Prefix of the tags. The rest of a key sorts by time.
_PREFIX = "champion."
# Tag of earlier versions of this project: all champions in order, without who and when.
_EARLIER = "champions"

Event = Literal["promoted", "forced", "rolled back", "settled"]


@dataclass(frozen=True)
class Entry:
    """A change of the champion.

    Args:
        key: Key of the tag; keys sort in the order of the changes.
        event: `promoted` by the rule, `forced`, `rolled back`, or `settled`: two versions were
            promoted at the same time, and this one is the better.
        version: The champion from then on.
        replaced: The champion before; None if there was none.
        time: When, in ISO 8601.
        user: Name of the account.
        host: Name of the machine.
        program: Name of the program.
        ray_job: Id of the submitted Ray job; None outside of one.
    """

    key: str
    event: Event
    version: str
    replaced: str | None
    time: str
    user: str
    host: str
    program: str
    ray_job: str | None


class ChampionHistory:
    """The history of one registered model."""

    def __init__(self, model: tracking.RegisteredModel) -> None:
        self._model = model

    def entries(self) -> list[Entry]:
        """Return all entries in order."""
        return _entries(self._model.tags())

    def append(self, event: Event, version: str, replaced: str | None) -> Entry:
        """Append an entry for a change that is made now."""
        now = datetime.now(UTC)
        key = f"{_PREFIX}{now:%Y%m%dT%H%M%S.%f}.{uuid.uuid4().hex[:8]}"
        time = now.isoformat(timespec="seconds")
        entry = Entry(key, event, version, replaced, time, **who())
        values = {name: value for name, value in asdict(entry).items() if name != "key"}
        self._model.set_tag(key, json.dumps(values))
        return entry

    def champions(self, current: str | None) -> list[str]:
        """Return the champions that a rollback can return to, then the current one.

        Versions that have been deleted are left out, and so are those that were rolled back.

        Args:
            current: The version that has the alias now, which may have been moved by hand; None
                if none has. Then the last champion that still exists comes last.
        """
        tags = self._model.tags()
        champions = replay(json.loads(tags.get(_EARLIER, "[]")), _entries(tags))
        if current is not None and champions[-1:] != [current]:
            champions.append(current)
        existing = self._model.versions()
        return _without_repeats(version for version in champions if version in existing)


def _entries(tags: dict[str, str]) -> list[Entry]:
    keys = sorted(key for key in tags if key.startswith(_PREFIX))
    return [Entry(key=key, **json.loads(tags[key])) for key in keys]


def replay(earlier: list[str], entries: Iterable[Entry]) -> list[str]:
    """Return the champions after all entries, without those that were rolled back.

    Args:
        earlier: Champions before the first entry.
        entries: Changes in order.
    """
    champions = list(earlier)
    before: Entry | None = None
    for entry in entries:
        if entry.event in ("rolled back", "settled") and entry.version in champions:
            while champions[-1] != entry.version:
                champions.pop()
        else:
            # Two changes at the same time replace the same champion.
            is_twin = before is not None and before.replaced == entry.replaced
            moved_by_hand = [] if is_twin or entry.replaced is None else [entry.replaced]
            for version in (*moved_by_hand, entry.version):
                if champions[-1:] != [version]:
                    champions.append(version)
        before = entry
    return champions


def _without_repeats(champions: Iterable[str]) -> list[str]:
    """Drop a version that follows itself, as when the one in between was deleted."""
    kept: list[str] = []
    for version in champions:
        if kept[-1:] != [version]:
            kept.append(version)
    return kept


def who() -> dict[str, Any]:
    """Return account, machine, program and Ray job of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        user = "unknown"
    return {
        "user": user,
        "host": socket.gethostname(),
        "program": Path(sys.argv[0]).stem or "python",
        "ray_job": ray_internals.submission_id(),
    }
