"""The replicas of an application of Ray Serve, as actors of the test's own Ray."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray import serve


def replicas(app_name: str) -> list[Any]:
    """Their actors; one that ends in the meantime is left out."""
    found = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["name"].startswith(f"SERVE_REPLICA::{app_name}#"):
            with suppress(ValueError):  # listed, and gone before it was looked up
                found.append(ray.get_actor(**named))
    return found


def all_are_running(app_name: str) -> bool:
    """Whether none of them starts, updates or ends."""
    (deployment,) = serve.status().applications[app_name].deployments.values()
    return set(deployment.replica_states) == {"RUNNING"}


def in_replicas(function: Callable[[Any], Any], app_name: str) -> list[Any]:
    """What a function makes of each replica's classifier, in its process."""

    def call(_: Any) -> Any:
        return function(serve.get_replica_context().servable_object)

    return ray.get([actor.__ray_call__.remote(call) for actor in replicas(app_name)])
