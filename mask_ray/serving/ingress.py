"""The HTTP entrance of the service: HAProxy, or else Ray Serve's own proxy in Python.

Serve reads how it answers HTTP from its environment, when it and Ray start, and all nodes must
agree. `eval "$(python -m mask_ray.ingress)"` sets it in a shell; a variable that is set keeps its
value.
"""

import os
import shlex
import sys
from pathlib import Path

from mask_ray import cli
from mask_ray.config import IngressSettings
from mask_ray.serving import haproxy

_ALWAYS = {
    # Clients of Ray show the token of ~/.ray/auth_token.
    "RAY_AUTH_MODE": "token",
    # Serve's own errors, such as 429, are problem+json too.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mask_ray.serving:problem_middleware",
    # A replica that fails its health checks gets no time to end its requests: it cannot.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}

# What RAY_SERVE_THROUGHPUT_OPTIMIZED sets. Under that name Serve prints this list at each start.
THROUGHPUT = {
    # The app shares the replica's event loop: nothing slow runs on it.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Follows the one above unless it is set; the throughput mode leaves it off.
    "RAY_SERVE_PROXY_USE_GRPC": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

_HAPROXY = THROUGHPUT | {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Its configuration is made tighter before it starts.
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).parent / "mask-ray-haproxy"),
    # Asked of another replica: what met none, or one that died or hangs. To classify twice does no
    # harm. Not 429 and 503, which are answers.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    # Of these, only requests that fit into a buffer can be asked again.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(haproxy.BUFFER_BYTES),
    # More than Serve's request_timeout_s in serve_config.yaml, so that Serve answers 504 first:
    # past this a replica hangs. Raise it where that is raised.
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "25",
    # Nothing comes from the client, or is taken by it.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    # HAProxy stops asking a replica that is to end within a second or two.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Two of these in a row that fail, and a replica gets no more requests.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
}

_NO_BINARY = (
    "no haproxy is found (it comes with Ray on Linux): serving through Ray's Python proxy, which "
    "is slower"
)


def main() -> None:
    """Print the environment."""
    settings = cli.parse(IngressSettings, sys.argv[1:])
    for name, value in environment(settings.haproxy).items():
        print(f"export {name}={shlex.quote(value)}")


def environment(wants_haproxy: bool = True) -> dict[str, str]:
    """Variables for whatever starts Ray or Serve. Says so where HAProxy is wanted and missing."""
    variables = dict(_ALWAYS)
    if wants_haproxy and haproxy.find_binary() is None:
        print(f"warning: {_NO_BINARY}", file=sys.stderr)
        wants_haproxy = False
    variables |= _HAPROXY if wants_haproxy else {}
    given = {name: os.environ.get(name, value) for name, value in variables.items()}
    # Without HAProxy whatever the environment says: it is missing, or not wanted.
    return given if wants_haproxy else given | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}


if __name__ == "__main__":
    main()
