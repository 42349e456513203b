"""Load the models that a replica serves."""

import threading
from collections.abc import Callable
from pathlib import Path

from ray import serve

from mask_ray.config import ServeSettings
from mask_ray.models.smoke_test import load_checked
from mask_ray.serving.versions.events import ModelEvents
from mask_ray.serving.versions.follower import (
    FixedModels,
    LoadedModel,
    Models,
    Serving,
    VersionFollower,
)
from mask_ray.serving.versions.model_files import find_here
from mask_ray.serving.versions.registry_actor import Followed, RegistryWatch


def load_models(
    settings: ServeSettings,
    followed: Followed | None,
    events: ModelEvents,
    is_healthy: Callable[[str | None], bool],
) -> Models:
    """Load the model of the settings, or follow the alias in a thread of this replica.

    Args:
        settings: Settings of the service.
        followed: The alias, if one is followed.
        events: Gets every switch and refusal.
        is_healthy: Whether the replica passes its health checks with a version.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        ModelRefusedError: its file is not a classifier.
    """
    if followed is None:
        return FixedModels(Serving(_load(*find_here(settings.model_uri), settings, None)))
    replica = serve.get_replica_context()
    watch = RegistryWatch(replica.app_name, followed, replica.replica_id.unique_id, is_healthy)

    def load(version: str) -> LoadedModel:
        path = watch.file_of(version) or find_here(f"models:/{followed.name}/{version}")[0]
        return _load(path, followed.name, version, settings, followed.class_names)

    follower = VersionFollower(
        followed.alias, fallback=followed.pinned, ask=watch.wanted, load=load, events=events
    )
    # A daemon thread, so that it does not keep the replica's process alive.
    threading.Thread(
        target=follower.follow_every,
        args=(followed.period_s, threading.Event()),
        name="follow",
        daemon=True,
    ).start()
    return follower


def _load(
    path: Path,
    name: str,
    version: str | None,
    settings: ServeSettings,
    class_names: tuple[str, ...] | None,
) -> LoadedModel:
    predictor = load_checked(path, settings.num_lone_threads, class_names)
    predictor.warm_up(settings.max_batch_size)
    return LoadedModel(name, version, predictor)
