"""Chooses the model that an application starts with.

It must keep within the limits of the service, as every later version must: otherwise replicas would
start and fail their health checks without end. If the version of an alias does not, the champion
before it takes its place.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mask_ray.config import CHAMPION, MaskRayError
from mask_ray.models.smoke_test import ModelLimits, ModelRefusedError, load_checked
from mask_ray.serving.versions.alias_watch import alias_of

if TYPE_CHECKING:
    from mask_ray.tracking import ResolvedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstModel:
    """A model that may be served, and the class names of its file."""

    path: Path
    name: str
    version: str | None
    class_names: tuple[str, ...]


def find_first(uri: str, limits: ModelLimits) -> FirstModel:
    """Find the model to start with, and try it in this process.

    Args:
        uri: An MLflow model URI, or the path of an `.onnx` file.
        limits: What the model may cost.

    Raises:
        ModelRefusedError: it must not be served, and neither may the champions before it.
        MaskRayError: there is none, or the registry does not answer.
    """
    # Imported late: it imports MLflow, which a replica does not need.
    from mask_ray import tracking

    found = tracking.resolve_model(uri)
    name_and_alias = alias_of(uri)
    if name_and_alias is None or found.version is None:
        return _load_and_try(found, limits)
    name, alias = name_and_alias

    def load(version: str) -> FirstModel:
        if reason := tracking.refusal(name, version):
            raise ModelRefusedError(reason)
        return _load_and_try(tracking.resolve_model(f"models:/{name}/{version}"), limits)

    return choose_first(found.version, lambda: _champions(name) if alias == CHAMPION else [], load)


def choose_first(
    version: str, champions: Callable[[], Sequence[str]], load: Callable[[str], FirstModel]
) -> FirstModel:
    """Load a version; if it is refused, the last champion that is not.

    Args:
        version: The version that the alias names.
        champions: Returns the champions in order.
        load: Loads a version, or raises an error.

    Raises:
        ModelRefusedError: none of them may be served; the message says why.
    """
    try:
        return load(version)
    except ModelRefusedError as error:
        reason = str(error)
    logger.error("version %s is rejected: %s", version, reason)
    others = [each for each in dict.fromkeys(reversed(champions())) if each != version]
    for other in others:
        try:
            model = load(other)
        except MaskRayError as error:
            logger.error("version %s, a champion before it, is rejected: %s", other, error)
            continue
        logger.error("starting with version %s, a champion before it", other)
        return model
    tried = f"; neither can {', '.join(others)}" if others else ""
    raise ModelRefusedError(
        f"version {version} cannot be served: {reason}. No champion before it can take its place"
        f"{tried or ': there is none'}"
    )


def _load_and_try(found: "ResolvedModel", limits: ModelLimits) -> FirstModel:
    predictor = load_checked(found.path, limits=limits)
    return FirstModel(found.path, found.name, found.version, predictor.class_names)


def _champions(name: str) -> Sequence[str]:
    from mask_ray import tracking
    from mask_ray.evaluation.champion_history import ChampionHistory

    return ChampionHistory(tracking.RegisteredModel(name)).champions(None)
