"""Starts the service in a running Ray, and says whether one is there."""

from pathlib import Path

import yaml
from ray import serve
from ray.serve.exceptions import RayServeException

from mask_ray.config import MaskRayError
from mask_ray.serving.deployment import build_app


def start(config: Path, model_uri: str) -> None:
    """Serve the application of a file such as serve_config.yaml in this Ray, and leave it there.

    Args:
        config: Where, and by which settings.
        model_uri: The model, in place of the file's.

    Raises:
        MaskRayError: the file is not one, or the application cannot be served.
    """
    try:
        told = yaml.safe_load(config.read_text())
        (application,) = told["applications"]
        serve.start(
            proxy_location=told.get("proxy_location"), http_options=told.get("http_options")
        )
        serve.run(
            build_app(application.get("args", {}) | {"model_uri": model_uri}),
            name=application["name"],
            route_prefix=application.get("route_prefix", "/"),
        )
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise MaskRayError(
            f"serve_config must be a file such as serve_config.yaml; got {config}: {error}"
        ) from error
    except (RayServeException, RuntimeError) as error:
        raise MaskRayError(f"the service does not start: {error}") from error


def is_running() -> bool:
    """Whether this Ray serves any application."""
    return bool(serve.status().applications)
