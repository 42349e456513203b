"""Deploys the applications of a file such as serve_config.yaml, and says how they are."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from mask_ray.config import MaskRayError, ServeSettings, explain
from mask_ray.ray_internals import deploy_to_serve, serve_http_address

_IMPORT_PATH = "mask_ray.serving:build_app"

_DEPLOY_ATTEMPTS = 3

# The last line of a traceback.
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*\.)?\w*(?:Error|Exception)\b(?:\(\w+\))?: (.+)")


@dataclass(frozen=True)
class ServeFile:
    """A checked configuration of Serve.

    Args:
        path: The file.
        schema: Its content, as Serve reads it.
        name: Its application of this project.
        settings: The arguments of that application.
    """

    path: Path
    schema: ServeDeploySchema
    name: str
    settings: ServeSettings

    @property
    def names(self) -> list[str]:
        """All its applications."""
        return [application.name for application in self.schema.applications]

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where Serve is to listen."""
        return self.schema.http_options.host, self.schema.http_options.port

    @property
    def url(self) -> str:
        """Address of the application on this machine."""
        (prefix,) = (a.route_prefix for a in self.schema.applications if a.name == self.name)
        return f"{url_of(*self.host_and_port)}{(prefix or '/').rstrip('/')}"


def url_of(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens there."""
    if host in ("", "0.0.0.0"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def read(path: Path) -> ServeFile:
    """Read and check a file such as serve_config.yaml.

    Raises:
        MaskRayError: it cannot be read, is no such file, or has a wrong setting.
    """
    try:
        schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
        applications = [a for a in schema.applications if a.import_path == _IMPORT_PATH]
        if len(applications) != 1:
            raise MaskRayError(
                f"{path} must have one application of {_IMPORT_PATH}; it has {len(applications)}"
            )
        settings = ServeSettings.model_validate(applications[0].args)
    except OSError as error:
        raise MaskRayError(
            f"--serve-config must be a file such as serve_config.yaml; {path}: {error.strerror}"
        ) from None
    except ValidationError as error:
        raise MaskRayError(f"{path}: {explain(error)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise MaskRayError(f"{path} must be YAML in UTF-8: {error}") from None
    return ServeFile(path, schema, applications[0].name, settings)


def deploy(file: ServeFile) -> None:
    """Start Serve in this Ray unless it runs, and have it deploy the file. Does not wait.

    Raises:
        MaskRayError: Serve rejects the file, or does not start.
    """
    for attempt in range(1, _DEPLOY_ATTEMPTS + 1):
        try:
            deploy_to_serve(file.schema)
            return
        except RayActorError as error:
            # On a busy machine Serve replaces proxies that take long to start, while their start
            # is waited for. It is up by then.
            if attempt == _DEPLOY_ATTEMPTS:
                raise MaskRayError(
                    f"Serve does not start: {reason_in(str(error))}. A busy machine may need a "
                    "second try; see controller_* in /tmp/ray/session_latest/logs/serve"
                ) from error
        except (RayServeException, RayError, RuntimeError, ValueError) as error:
            raise MaskRayError(f"Serve does not take {file.path}: {reason_in(str(error))}") from (
                error
            )


@dataclass(frozen=True)
class Status:
    """How an application is.

    Args:
        is_running: Whether all its replicas run.
        failure: Why it does not run, in one line; empty while it may still start.
        details: All that Serve says about it.
        deployed_at_s: When it was deployed last, in Unix time.
        num_running: Replicas that answer.
        num_starting: Replicas that wait for CPUs or memory, or load the model.
    """

    is_running: bool
    failure: str
    details: str
    deployed_at_s: float
    num_running: int = 0
    num_starting: int = 0


def status(name: str) -> Status | None:
    """Return how an application of this Ray is; None if there is none of this name."""
    try:
        found = serve.status().applications.get(name)
    except RayError:
        # Serve, or Ray, was ended.
        return None
    if found is None or found.status == ApplicationStatus.DELETING:
        return None
    details = "\n".join([found.message, *(each.message for each in found.deployments.values())])
    replicas: Counter[str] = Counter()
    for each in found.deployments.values():
        replicas.update(each.replica_states)
    has_failed = found.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
    return Status(
        found.status == ApplicationStatus.RUNNING,
        reason_in(details) if has_failed else "",
        details,
        found.last_deployed_time_s,
        num_running=replicas["RUNNING"],
        num_starting=replicas["STARTING"],
    )


def reason_in(details: str) -> str:
    """Return the error in what Serve says, without its tracebacks and the names of exceptions."""
    lines = [line.strip() for line in details.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _EXCEPTION.match(line))]
    return (errors or lines or ["the application does not start"])[-1]


def running() -> list[str]:
    """Return the names of the applications that this Ray serves."""
    found = serve.status().applications.items()
    return [name for name, each in found if each.status != ApplicationStatus.DELETING]


def listens_on() -> tuple[str, int] | None:
    """Return host and port of the Serve that runs in this Ray; None if none does."""
    return serve_http_address()


def end(names: list[str]) -> None:
    """End applications once the requests that they have are answered, and Serve with the last."""
    with suppress(RayError):  # what was ended elsewhere
        for name in names:
            serve.delete(name)
        if not running():
            serve.shutdown()


def replica_lines(batch: Mapping[str, Any], name: str) -> list[str]:
    """Return what a batch of forwarded output holds of an application's replicas.

    Args:
        batch: As Ray hands it to a handler; see `ray_internals.on_worker_output`.
        name: The application.
    """
    actor = batch.get("actor_name") or ""
    return list(batch["lines"]) if actor.startswith(f"ServeReplica:{name}:") else []
