"""What all settings share: base class, errors, and where state is stored."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_MODEL_NAME = "mask-detector"

# Aliases of a registered model: the version served, its candidate, and the one to roll back to.
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"

# Names of registered models. They are parts of URIs and of MLflow's searches, which other signs
# would end: a model of such a name could be registered, and never be found.
MODEL_NAME = r"^\w([\w .()+-]*[\w)+-])?$"

DEFAULT_MODEL_URI = f"models:/{DEFAULT_MODEL_NAME}@{CHAMPION}"

T = TypeVar("T")


class MaskRayError(Exception):
    """A mistake that the user can correct. The message is one line and needs no traceback."""


def home() -> Path:
    """Return the folder of all state: `MASK_RAY_HOME`, or `~/.mask_ray`. Does not create it.

    Raises:
        MaskRayError: there is no home directory that it could be in.
    """
    named = os.environ.get("MASK_RAY_HOME") or "~/.mask_ray"
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise MaskRayError(
            f"MASK_RAY_HOME must be a folder for runs and models; {named} is none, since this user "
            "has no home directory. Set MASK_RAY_HOME to a path"
        ) from None


class Settings(BaseModel):
    """Base of all settings: immutable, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


@dataclass(frozen=True)
class MayChange:
    """Marks a setting that a resumed run may change: how the run works, or what follows it."""


def changeable_fields(settings_class: type[Settings]) -> set[str]:
    """Return the names of the settings that are marked with `MayChange`."""
    return {
        name
        for name, field in settings_class.model_fields.items()
        if any(isinstance(mark, MayChange) for mark in field.metadata)
    }


def none_for_auto(value: Any) -> Any:
    """Replace `auto`, as written in a flag or file, by None."""
    return None if value == "auto" else value


def one_of(value: T, allowed: tuple[T, ...]) -> T:
    """Return the value if it is allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(map(str, allowed))}; got {value}")
    return value


def explain(error: ValidationError) -> str:
    """Describe each mistake: the field, what is allowed, what was received."""
    return "; ".join(map(_describe_mistake, error.errors(include_url=False)))


def _describe_mistake(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{field} is required"
    if detail["type"] == "extra_forbidden":
        return f"{field} is not a setting"
    if detail["type"] == "value_error":
        return f"{field} {message}".strip()
    return f"{field} {re.sub('^(Input|String) should', 'must', message)}; got {detail['input']!r}"
