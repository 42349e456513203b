"""Serve a model in the foreground: `make serve`.

Deploys serve_config.yaml as `serve run` does, and says what that does not: that the service is
ready, where, and with which version; that it replaces one; why it cannot serve; how it ends.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from mask_ray import cli, processes, progress
from mask_ray.config import MaskRayError
from mask_ray.config.serve_command import ServeCommandSettings
from mask_ray.ray_internals import on_worker_output, started_ray
from mask_ray.serving import ingress

if TYPE_CHECKING:
    from mask_ray.serving.applications import ServeFile, Status

_POLL_S = 0.5
# How often a service that is ready is asked which version answers.
_WATCH_S = 5.0
# How long the HTTP side may take, once the replicas run.
_ANSWER_WITHIN_S = 60.0
# How often a service that waits for CPUs or memory says so.
_REMIND_S = 30.0


class _TakenError(MaskRayError):
    """Another command ended the application, or deployed it again."""


def main() -> None:
    """Serve until Ctrl-C. Whatever prevents it is one line and exit code 1 or 2."""
    settings = cli.parse(ServeCommandSettings, sys.argv[1:])
    # Read when Ray is imported.
    os.environ.update(ingress.other_free_ports() | os.environ)
    os.environ.update(ingress.environment(settings.haproxy))
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        _run(settings)
    except MaskRayError as error:
        cli.fail(cli.one_line(error) + cli.where_logged(), exit_code=1)
    except KeyboardInterrupt:
        cli.fail("stopped", exit_code=cli.INTERRUPTED)


def _run(settings: ServeCommandSettings) -> None:
    from mask_ray.serving import applications

    file = applications.read(settings.serve_config)
    cli.connect(instead=f"serve deploy {file.path} --address $RAY_ADDRESS")
    # After Ray, which sets a handler of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    on_worker_output(lambda batch: _relay(batch, file.name), of_all_jobs=True)
    if started_ray():
        progress.say("started a Ray, which ends with the service")
    _check_place(file)
    running = applications.running()
    try:
        _deploy(file, running)
        deployed_at_s = _await_replicas(file)
        version = _await_answer(file)
        _watch(file, deployed_at_s, version)
    except KeyboardInterrupt:
        progress.leave_echo()
        progress.say("stopping: requests that are running are answered first")
        applications.end(file.names)
        progress.say("stopped")
    except _TakenError:
        raise
    except MaskRayError as error:
        applications.end([name for name in file.names if name not in running])
        health = _health(file.url) if file.name in running else None
        if health is None:
            raise
        still = f"{_version(health)} goes on answering at {file.url}"
        raise MaskRayError(f"{error} -- {still}") from error


def _relay(batch: Mapping[str, Any], name: str) -> None:
    """Print what replicas print; the log has what everything else prints."""
    from mask_ray.serving.applications import replica_lines

    for line in replica_lines(batch, name):
        progress.say(line)


def _check_place(file: "ServeFile") -> None:
    """Check that Serve listens, or can listen, where the file says."""
    from mask_ray.serving import applications

    host, port = file.host_and_port
    listens_on = applications.listens_on()
    if listens_on == (host, port):
        return
    if listens_on is not None:
        raise MaskRayError(
            f"this Ray serves at {applications.url_of(*listens_on)} already, and http_options of "
            f"{file.path} say {applications.url_of(host, port)}: change them, or end the other "
            "with `serve shutdown -y`"
        )
    try:
        processes.check_listen(host, port)
    except OSError as error:
        raise MaskRayError(
            f"the service cannot listen on port {port} of {host}: {error.strerror}. End what "
            f"listens there, or change http_options in {file.path}"
        ) from None


def _deploy(file: "ServeFile", running: Sequence[str]) -> None:
    """Deploy the file, and say which applications it replaces or ends."""
    from mask_ray.serving import applications

    for name in running:
        if name in file.names:
            progress.say(f"replacing {name}, which this Ray serves; Ctrl-C then ends it")
        else:
            progress.say(f"ending {name}, which this Ray serves and {file.path} does not name")
    progress.say(f"deploying {file.settings.model_uri}")
    applications.deploy(file)


def _await_replicas(file: "ServeFile") -> float:
    """Wait until the application runs. Returns when it was deployed, in Unix time.

    Raises:
        MaskRayError: it does not start; the message says why.
    """
    from mask_ray.serving import applications

    reminder_s = time.monotonic() + _REMIND_S
    while True:
        status = applications.status(file.name)
        if status is None:
            raise _TakenError(f"{file.name} was ended by another command")
        if status.is_running:
            return status.deployed_at_s
        if status.failure:
            progress.note(status.details)
            raise MaskRayError(status.failure)
        if time.monotonic() > reminder_s:
            reminder_s += _REMIND_S
            progress.say(f"still deploying: {_waits_for(file)}")
        time.sleep(_POLL_S)


def _waits_for(file: "ServeFile") -> str:
    settings = file.settings
    return (
        f"a replica needs {settings.num_threads} free CPU and "
        f"{settings.replica_memory_bytes / 2**30:.1f} GiB of memory; see `ray status`"
    )


def _await_answer(file: "ServeFile") -> str:
    """Wait for the first answer over HTTP, and say that the service is ready. Returns the version.

    Raises:
        MaskRayError: the replicas run, but nothing answers.
    """
    deadline_s = time.monotonic() + _ANSWER_WITHIN_S
    while time.monotonic() < deadline_s:
        health = _health(file.url)
        if health is not None:
            progress.say(f"ready at {file.url}, {_version(health)}")
            return _version(health)
        time.sleep(_POLL_S)
    raise MaskRayError(
        f"the replicas run, but nothing answers at {file.url} after {_ANSWER_WITHIN_S:.0f} s: see "
        "the files proxy_* and haproxy_* in /tmp/ray/session_latest/logs/serve"
    )


def _version(health: Mapping[str, Any] | None) -> str:
    if health is None:
        return "not ready"
    model = health["model"]
    return f"version {model['version']}" if model["version"] else str(model["name"])


def _watch(file: "ServeFile", deployed_at_s: float, version: str) -> None:
    """Say which version answers whenever it changes, and what cannot be used, until Ctrl-C.

    Raises:
        MaskRayError: the application was ended or deployed again by another command.
    """
    num_waits = 0
    refused: set[str] = set()
    while True:
        time.sleep(_WATCH_S)
        status = _own_status(file, deployed_at_s)
        num_waits = num_waits + 1 if status.num_starting else 0
        if num_waits == _REMIND_S // _WATCH_S:
            num_replicas = status.num_starting + status.num_running
            progress.say(
                f"{status.num_starting} of {num_replicas} replicas not started after "
                f"{_REMIND_S:.0f} s: {_waits_for(file)}"
            )
        health = _health(file.url)
        if _version(health) != version:
            version = _version(health)
            progress.say(f"{file.url}: {version}")
        lines = _refusals(health)
        for line in lines - refused:
            progress.say(line)
        refused |= lines


def _refusals(health: Mapping[str, Any] | None) -> set[str]:
    """Return a line for each version that a replica does not serve although an alias names it."""
    if health is None:
        return set()
    return {
        f"version {each['version']} ({each['alias']}) cannot be served, {_version(health)} "
        f"stays: {each['reason']}"
        for each in health["refused"]
    }


def _own_status(file: "ServeFile", deployed_at_s: float) -> "Status":
    from mask_ray.serving import applications

    status = applications.status(file.name)
    if status is None:
        raise _TakenError(f"{file.name} was ended by another command")
    if status.deployed_at_s != deployed_at_s:
        raise _TakenError(f"{file.name} was deployed again by another command, which has it now")
    return status


def _health(url: str) -> Mapping[str, Any] | None:
    """Return what `GET /healthz` says; None if no replica can classify."""
    try:
        response = httpx.get(f"{url}/healthz", timeout=10, trust_env=False)
        health: Mapping[str, Any] = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return health


if __name__ == "__main__":
    main()
