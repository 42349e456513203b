"""Starts the service in a running Ray, and checks whether one is running."""

from pathlib import Path

import yaml
from ray import serve
from ray.serve.exceptions import RayServeException

from mask_ray.config import MaskRayError
from mask_ray.serving.deployment import build_app


def start(config: Path, model_uri: str) -> None:
    """Start the application of a file such as serve_config.yaml in this Ray, and leave it running.

    Args:
        config: The file.
        model_uri: Model to serve, in place of the file's.

    Raises:
        MaskRayError: the file is malformed, or the application does not start.
    """
    try:
        loaded = yaml.safe_load(config.read_text())
        (application,) = loaded["applications"]
        serve.start(
            proxy_location=loaded.get("proxy_location"), http_options=loaded.get("http_options")
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
    """Whether this Ray serves an application."""
    return bool(serve.status().applications)
