"""Runs and models in MLflow: the only package that imports it.

State is an SQLite file and a folder of artifacts under `MASK_RAY_HOME`, unless
`MLFLOW_TRACKING_URI` names a server.
"""

from mask_ray.tracking.model_cache import ModelDamagedError
from mask_ray.tracking.registry import (
    ModelNotFoundError,
    RegisteredModel,
    ResolvedModel,
    aliases,
    forget_refusal,
    keep_refusal,
    refusal,
    resolve_model,
)
from mask_ray.tracking.runs import (
    Run,
    find_runs,
    name_tag,
    overview_tags,
    start_run,
    system_metrics,
)
from mask_ray.tracking.store import TrackingError, UnreachableError, answer_soon, check_shared

__all__ = [
    "ModelDamagedError",
    "ModelNotFoundError",
    "RegisteredModel",
    "ResolvedModel",
    "Run",
    "TrackingError",
    "UnreachableError",
    "aliases",
    "answer_soon",
    "check_shared",
    "find_runs",
    "forget_refusal",
    "keep_refusal",
    "name_tag",
    "overview_tags",
    "refusal",
    "resolve_model",
    "start_run",
    "system_metrics",
]
