"""Rejects query parameters that a route does not have, as unknown keys of JSON are rejected."""

from fastapi.routing import APIRoute
from starlette.requests import Request

from mask_ray.serving.http.limits import PayloadError, quoted

_MAX_NAMED = 5


async def reject_unknown_parameters(request: Request) -> None:
    """Raise 422 for a query parameter that the route does not have, or that is given twice.

    A dependency of routes. Otherwise a misspelt parameter would be ignored without a word.
    """
    received = [name for name, _ in request.query_params.multi_items()]
    if not received:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    allowed = [field.alias for field in route.dependant.query_params]
    if unknown := [name for name in received if name not in allowed]:
        names = ", ".join(quoted(name) for name in unknown[:_MAX_NAMED])
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        expected = "this path has no query parameters"
        if allowed:
            expected = f"query parameters must be {' or '.join(allowed)}"
        raise PayloadError(422, f"{expected}; got {names}{more}")
    for name in allowed:
        if received.count(name) > 1:
            raise PayloadError(422, f"{name} must be given once; got {received.count(name)} of it")
