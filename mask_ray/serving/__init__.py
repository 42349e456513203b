"""The endpoint on Ray Serve.

Serve imports `build_app` and `problem_middleware` from here by name. They are loaded on first use:
importing a light module such as `ingress` does not import Ray Serve.
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
