"""Load the models that a replica serves."""

import threading
from collections.abc import Callable

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
from mask_ray.serving.versions.registry_actor import Followed, RegistryWatch, resolve_here


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
        return FixedModels(Serving(_load(settings.model_uri, settings, None)))
    replica = serve.get_replica_context()
    watch = RegistryWatch(replica.app_name, followed, replica.replica_id.unique_id, is_healthy)
    follower = VersionFollower(
        followed.alias,
        fallback=followed.pinned,
        ask=watch.wanted,
        load=lambda version: _load(
            f"models:/{followed.name}/{version}", settings, followed.class_names
        ),
        events=events,
    )
    # A daemon thread, so that it does not keep the replica's process alive.
    threading.Thread(
        target=follower.follow_every,
        args=(followed.period_s, threading.Event()),
        name="follow",
        daemon=True,
    ).start()
    return follower


def _load(uri: str, settings: ServeSettings, class_names: tuple[str, ...] | None) -> LoadedModel:
    path, name, version = resolve_here(uri)
    predictor = load_checked(path, settings.num_lone_threads, class_names)
    predictor.warm_up(settings.max_batch_size)
    return LoadedModel(name, version, predictor)
