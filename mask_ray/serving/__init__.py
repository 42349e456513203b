"""The endpoint on Ray Serve.

`build_app` and `problem_middleware` are what Serve imports by name; they are looked up on first
use, so that the light modules here, such as `ingress`, do not wait for Ray Serve.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask_ray.serving.deployment import build_app
    from mask_ray.serving.http.middleware import problem_middleware

__all__ = ["build_app", "problem_middleware"]


def __getattr__(name: str) -> Any:
    if name == "build_app":
        from mask_ray.serving.deployment import build_app

        return build_app
    if name == "problem_middleware":
        from mask_ray.serving.http.middleware import problem_middleware

        return problem_middleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
