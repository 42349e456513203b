"""The Ray Serve application: checked settings, a pinned model, and how Serve runs its replicas."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException

from mask_ray.config import MaskRayError, ServeSettings, explain
from mask_ray.models.smoke_test import ModelLimits, ModelRefusedError
from mask_ray.ray_internals import serve_http_host
from mask_ray.serving.http.auth import Guard, Token, TokenError, tokens_of_environment
from mask_ray.serving.http.errors import RETRY_AFTER_S
from mask_ray.serving.replica import Classifier
from mask_ray.serving.versions.alias_watch import alias_of
from mask_ray.serving.versions.first_version import find_first
from mask_ray.serving.versions.registry_actor import Followed


class ApplicationError(RayServeException):
    """The application cannot be built with these settings.

    Serve prints only the message of its own exceptions, and the traceback of all others.
    """


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the Serve application from the `args` of serve_config.yaml, see `ServeSettings`.

    An alias such as `@champion` is resolved to a version here, so that all replicas start with the
    same one. When the alias moves, they follow, unless `model_poll_s` is 0; see `versions`. A
    version over the limits of the service is not started with; see `versions.first_version`.

    Raises:
        ApplicationError: a setting is wrong, the model does not exist or is rejected, or there is
            no token and Serve listens beyond this machine.
    """
    try:
        settings = ServeSettings.model_validate(args)
    except ValidationError as error:
        raise ApplicationError(explain(error)) from None
    tokens = _checked_tokens(settings)
    pinned, followed = _pin_model(settings)
    settings = settings.model_copy(update={"model_uri": pinned})
    deployment: serve.Deployment = _deployment_decorator(settings)(serve.ingress()(Classifier))
    return deployment.bind(settings, followed, tokens)


def _checked_tokens(settings: ServeSettings) -> tuple[Token, ...]:
    """Return the tokens of this environment, which all replicas get, whatever their node's is.

    Rejects tokens once, before every replica would.
    """
    try:
        tokens = tokens_of_environment()
        Guard.of(settings, tokens).check_exposure(serve_http_host())
    except TokenError as error:
        raise ApplicationError(str(error)) from None
    return tokens


def _pin_model(settings: ServeSettings) -> tuple[str, Followed | None]:
    """Return a URI that never means another model, and the alias to follow, if any."""
    uri = settings.model_uri
    try:
        first = find_first(uri, _model_limits(settings))
    except ModelRefusedError as error:
        raise ApplicationError(f"{uri} is rejected: {error}") from None
    except MaskRayError as error:
        raise ApplicationError(str(error)) from None
    if ":/" not in uri:
        return str(first.path), None
    if not uri.startswith("models:/") or first.version is None:
        return uri, None
    followed = _followed_alias(settings, first.version, first.class_names)
    return f"models:/{first.name}/{first.version}", followed


def _followed_alias(
    settings: ServeSettings, version: str, class_names: tuple[str, ...]
) -> Followed | None:
    name_and_alias = alias_of(settings.model_uri)
    if name_and_alias is None or settings.model_poll_s == 0:
        return None
    name, alias = name_and_alias
    return Followed(
        name=name,
        alias=alias,
        pinned=version,
        class_names=None if settings.allow_other_classes else class_names,
        has_challenger=settings.challenger_share > 0,
        period_s=settings.model_poll_s,
        limits=_model_limits(settings),
        # Long enough for two health checks after the switch, and for the replica to report them:
        # with less, a replica that is only asked seldom would be taken for lost.
        trial_s=max(
            2 * (settings.health_check_period_s + settings.health_check_timeout_s),
            settings.model_poll_s,
        ),
    )


def _model_limits(settings: ServeSettings) -> ModelLimits:
    """Return what a version may cost: a health check waits for a batch, and is then in one."""
    return ModelLimits(
        batch_size=settings.max_batch_size,
        batch_s=min(0.4 * settings.health_check_timeout_s, 0.5 * settings.request_timeout_s),
        memory_mb=settings.max_model_mb,
    )


def _deployment_decorator(settings: ServeSettings) -> Callable[[type], serve.Deployment]:
    return serve.deployment(
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
            "look_back_period_s": settings.look_back_period_s,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
            "downscaling_factor": settings.downscaling_factor,
        },
        max_surge_percent=settings.max_surge_percent,
        ray_actor_options={
            "num_cpus": settings.num_threads,
            "memory": settings.replica_memory_bytes,
        },
        # The app has its own access log, with more fields.
        logging_config={"enable_access_log": False},
        health_check_period_s=settings.health_check_period_s,
        health_check_timeout_s=settings.health_check_timeout_s,
        # Long enough for every accepted request to be answered.
        graceful_shutdown_timeout_s=2 * settings.request_timeout_s + 5,
        max_constructor_retry_count=3,
    )
