"""The environment for Ray and Serve: HTTP through HAProxy, or else through Ray's Python proxy.

Serve reads these variables when it and Ray start; they must be the same on all nodes.
`eval "$(python -m mask_ray.ingress)"` sets them in a shell. A variable that is already set keeps
its value.
"""

import os
import shlex
import sys
from pathlib import Path

from mask_ray import cli, proxies, ray_internals
from mask_ray.config import IngressSettings
from mask_ray.processes import free_port, is_free
from mask_ray.serving import haproxy

_ALWAYS = {
    # Clients of Ray send the token of ~/.ray/auth_token.
    "RAY_AUTH_MODE": "token",
    **cli.NO_TELEMETRY,
    **ray_internals.START_ENVIRONMENT,
    # Serve's own errors, such as 429, are problem+json too.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mask_ray.serving:problem_middleware",
    # Serve replaces a proxy that is not ready after three checks of this length: on a busy machine,
    # again and again.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "15",
    # A replica that fails its health checks cannot finish its requests: it gets no time to.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # `ray job submit` prints nothing of the upload.
    "RAY_JOB_SUBMIT_HOOK": "mask_ray.progress.quiet_submission",
}

# What RAY_SERVE_THROUGHPUT_OPTIMIZED sets. Under that name Serve prints this list at each start.
THROUGHPUT = {
    # The app shares the replica's event loop: nothing slow runs on it.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Unless it is set, Serve gives it the value of the variable above.
    "RAY_SERVE_PROXY_USE_GRPC": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

_HAPROXY = THROUGHPUT | {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Tightens HAProxy's configuration before it starts.
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).parent / "mask-ray-haproxy"),
    # Sent to another replica: requests whose replica is gone, dies or hangs. Classifying twice does
    # no harm. Not 429 and 503, which are answers.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    # Only requests that fit into a buffer can be sent again.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(haproxy.BUFFER_BYTES),
    # After this a replica counts as hung. Keep it above request_timeout_s below http_options in
    # serve_config.yaml, so that Serve answers 504 first.
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "25",
    # Longest silence of a client.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    # HAProxy needs a second or two to stop sending requests to a replica that is stopping.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # A replica that fails two in a row gets no more requests.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
}

_NO_BINARY = (
    "haproxy is not found (it comes with Ray on Linux): serving through Ray's Python proxy, which "
    "is slower"
)


# Ports of Serve beside that of the service, which other programs may have taken.
_OTHER_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}


def main() -> None:
    """Print the environment as export lines."""
    settings = cli.parse(IngressSettings, sys.argv[1:])
    for name, value in environment(settings.haproxy).items():
        print(f"export {name}={shlex.quote(value)}")


def environment(wants_haproxy: bool = True) -> dict[str, str]:
    """Return the variables for a process that starts Ray or Serve.

    Prints a warning if HAProxy is wanted but not found.
    """
    variables = dict(_ALWAYS)
    if wants_haproxy and haproxy.find_binary() is None:
        print(f"warning: {_NO_BINARY}", file=sys.stderr)
        wants_haproxy = False
    variables |= _HAPROXY if wants_haproxy else {}
    variables = {name: os.environ.get(name, value) for name, value in variables.items()}
    # Ray's commands reach the dashboard through the proxy otherwise, and replicas the registry.
    variables |= proxies.without_this_machine(os.environ)
    # Even if the environment sets it: HAProxy is missing or not wanted.
    return variables if wants_haproxy else variables | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}


def other_free_ports() -> dict[str, str]:
    """Return variables that move Serve's other ports, where they are taken, to free ones."""
    return {name: str(free_port()) for name, port in _OTHER_PORTS.items() if not is_free(port)}


if __name__ == "__main__":
    main()
