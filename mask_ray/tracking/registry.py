"""Registered models in MLflow: versions, tags, aliases, and their files on this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel as RegisteredModelEntity
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version

from mask_ray.config import MaskRayError, home, tracking_uri
from mask_ray.tracking.model_cache import ONNX_FILE, ModelCache, check_digest
from mask_ray.tracking.store import UnreachableError, connect, is_server, translate_errors

# Tag of a version: SHA-256 of its ONNX file, in hex.
DIGEST_TAG = "onnx_sha256"

# Tag of a version that failed health checks in a service: why.
REFUSAL_TAG = "serving.refused"

# Errors of MLflow that say nothing about the model.
_NO_ANSWER = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
)


class ModelNotFoundError(MaskRayError):
    """No model under this URI; the message says how to make one."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model file on this machine, with its name and version in the registry."""

    path: Path
    name: str
    version: str | None


class RegisteredModel:
    """A registered model: its versions, their tags, and its aliases."""

    def __init__(self, name: str) -> None:
        self.name = name
        with translate_errors():
            connect()
            self._client = MlflowClient()

    def tags(self) -> dict[str, str]:
        """Return the tags of the model as a whole; none if there is no such model."""
        with translate_errors():
            found = _find(self._client, self.name)
        return {} if found is None else dict(found.tags)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the model as a whole."""
        with translate_errors():
            self._client.set_registered_model_tag(self.name, key, value)

    def versions(self) -> set[str]:
        """Return the numbers of all versions that have not been deleted."""
        with translate_errors():
            found = self._client.search_model_versions(f"name = '{self.name}'")
        return {str(known.version) for known in found}

    def has_version(self, version: str) -> bool:
        """Return whether there is such a version."""
        return version in self.versions()

    def run_id_of(self, version: str) -> str:
        """Return the id of the run that made a version."""
        with translate_errors():
            return str(self._client.get_model_version(self.name, version).run_id)

    def version_tags(self, version: str) -> dict[str, str]:
        """Return the tags of a version."""
        with translate_errors():
            return dict(self._client.get_model_version(self.name, version).tags)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with translate_errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.name, version, key, value)

    def set_alias(self, alias: str, version: str | None) -> None:
        """Point the alias to this version; None deletes the alias."""
        with translate_errors():
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
            else:
                self._client.set_registered_model_alias(self.name, alias, version)


def refusal(name: str, version: str) -> str | None:
    """Return why services do not try a version, with the way back; None if they may.

    Raises:
        TrackingError: the tracking store does not answer, or has no such version.
    """
    reason = RegisteredModel(name).version_tags(version).get(REFUSAL_TAG)
    if reason is None:
        return None
    return f"{reason}; to have it tried again, run `python -m jobs.promote {version} --force`"


def keep_refusal(name: str, version: str, reason: str) -> None:
    """Have no service try a version until `forget_refusal`."""
    RegisteredModel(name).tag_version(version, {REFUSAL_TAG: reason})


def forget_refusal(name: str, version: str) -> None:
    """Let services try a version again."""
    if REFUSAL_TAG in RegisteredModel(name).version_tags(version):
        with translate_errors():
            MlflowClient().delete_model_version_tag(name, version, REFUSAL_TAG)


def resolve_model(uri: str, *, prefer_kept: bool = False) -> ResolvedModel:
    """Find a model's ONNX file; download it from the registry if needed.

    Models of a server are kept in `models` of `home()`. The file of a version is checked against
    the SHA-256 that was stored when it was registered.

    Args:
        uri: An MLflow model URI (`models:/name@alias`, `models:/name/3`, `runs:/.../model`) or
            the path of an `.onnx` file.
        prefer_kept: Whether to use a version that is kept here without asking the server.

    Raises:
        ModelNotFoundError: there is none; the message names a command that makes one.
        UnreachableError: the registry does not answer, and the version is not kept here.
        ModelDamagedError: the file is not the one that was registered.
    """
    if ":/" not in uri or uri.startswith("file:"):
        return _model_file(Path(unquote(urlparse(uri).path)) if ":/" in uri else Path(uri))
    connect()
    cache = ModelCache(home() / "models", tracking_uri())
    exact = re.fullmatch(r"models:/([^/@]+)/([0-9]+)", uri)
    if exact and prefer_kept and (kept := cache.find(exact[1], exact[2], None)):
        return ResolvedModel(kept / ONNX_FILE, exact[1], exact[2])
    try:
        return _from_registry(uri, cache)
    except (MlflowException, OSError) as error:
        if not _is_unreachable(uri, error):
            raise ModelNotFoundError(
                f"no model {uri} in {tracking_uri()} ({_first_line(error)}). Make one with "
                "`ray job submit --working-dir . -- python -m jobs.train --data DIR`, or "
                "`make demo`"
            ) from error
        if exact and (kept := cache.find(exact[1], exact[2], None)):
            return ResolvedModel(kept / ONNX_FILE, exact[1], exact[2])
        raise UnreachableError(
            f"the tracking store {tracking_uri()} does not answer, and {uri} is not kept on this "
            f"machine: {_first_line(error)}"
        ) from error


def _from_registry(uri: str, cache: ModelCache) -> ResolvedModel:
    name, version = _name_and_version(uri)
    if version is None:
        # No digest is stored with a run's model, so nothing is found again without the server.
        fetch = partial(_downloaded, uri)
        folder = cache.keep(uri, "unnumbered", None, fetch) if is_server() else fetch()
        return ResolvedModel(folder / ONNX_FILE, name, None)
    # By version, since the alias may move meanwhile.
    exact_uri = f"models:/{name}/{version}"
    sha256 = MlflowClient().get_model_version(name, version).tags.get(DIGEST_TAG)
    if not is_server():
        path = _downloaded(exact_uri) / ONNX_FILE
        check_digest(path, sha256, exact_uri)
        return ResolvedModel(path, name, version)
    # Without a digest to compare with, the version is downloaded: what was kept may be another's.
    kept = None if sha256 is None else cache.find(name, version, sha256)
    if kept is None:
        kept = cache.keep(name, version, sha256, partial(_downloaded, exact_uri))
    return ResolvedModel(kept / ONNX_FILE, name, version)


def _downloaded(uri: str, folder: Path | None = None) -> Path:
    target = None if folder is None else str(folder)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))


def _is_unreachable(uri: str, error: MlflowException | OSError) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return uri.startswith(("models:/", "runs:/")) and error.error_code in _NO_ANSWER


def _first_line(error: Exception) -> str:
    return tracking_uri().scrub((str(error).splitlines() or [type(error).__name__])[0])


def aliases(name: str) -> dict[str, str]:
    """Return the version of each alias of a registered model; empty if there is no such model.

    Raises:
        TrackingError: the tracking store does not answer.
    """
    with translate_errors():
        connect()
        found = _find(MlflowClient(), name)
    return {} if found is None else {alias: str(v) for alias, v in found.aliases.items()}


def _find(client: MlflowClient, name: str) -> RegisteredModelEntity | None:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _model_file(path: Path) -> ResolvedModel:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ModelNotFoundError(
            f"model_uri must be an MLflow model URI (models:/name@alias) or an .onnx file; "
            f"there is no file {path}"
        )
    return ResolvedModel(path, path.stem, None)


def _name_and_version(uri: str) -> tuple[str, str | None]:
    """Return name and version in the registry; of another URI, the URI itself and None."""
    if not uri.startswith("models:/"):
        return uri, None
    name, *version = get_model_name_and_version(MlflowClient(), uri)
    return (name, str(version[0])) if version else (uri, None)
