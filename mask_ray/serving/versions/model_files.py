"""Find the files of models for a replica, which does not import MLflow."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mask_ray.config import MaskRayError
from mask_ray.files import sha256_of
from mask_ray.serving.versions.rollout import RESOLVE_TIMEOUT_S


@dataclass(frozen=True)
class ModelFile:
    """A model's file as another process of the service has found it.

    Args:
        path: Path of the file, on that process's machine.
        sha256: Its digest there, in hex.
    """

    path: Path
    sha256: str

    def is_here(self) -> bool:
        """Return whether this machine has the same file, under the same path."""
        try:
            return sha256_of(self.path) == self.sha256
        except OSError:
            return False


def find_in_registry(uri: str, *, prefer_kept: bool) -> ModelFile:
    """Find a model in this process, which imports MLflow; download it if needed.

    Args:
        uri: An MLflow model URI.
        prefer_kept: Whether to use a version that is kept here without asking the server.

    Raises:
        MaskRayError: the registry does not answer in time, or there is no such model.
    """
    from mask_ray import tracking

    def find() -> ModelFile:
        tracking.answer_soon()
        path = tracking.resolve_model(uri, prefer_kept=prefer_kept).path
        return ModelFile(path, sha256_of(path))

    # In a thread, which is left behind if a server sends a file too slowly.
    threads = ThreadPoolExecutor(1, "find")
    found = threads.submit(find)
    threads.shutdown(wait=False)
    if not wait([found], RESOLVE_TIMEOUT_S).done:
        raise MaskRayError(f"finding {uri} took over {RESOLVE_TIMEOUT_S:g} s")
    try:
        return found.result()
    except MaskRayError:
        raise
    except Exception as error:
        # Files of the registry can fail in any way, and may be back later.
        raise MaskRayError(str(error)) from error


def find_here(uri: str) -> tuple[Path, str, str | None]:
    """Find path (on this node), name and version of a model, in a process of its own.

    A version that is kept on this machine is found without the registry, so replicas start and
    scale while it is away.

    Raises:
        tracking.ModelNotFoundError: there is no such model.
        tracking.UnreachableError: the registry does not answer, and the model is not kept here.
        MaskRayError: finding it took too long.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    found = _find.options(scheduling_strategy=here).remote(uri)
    try:
        # Not ray.get, which logs a warning in an async actor such as a replica.
        path, name, version = found.future().result(RESOLVE_TIMEOUT_S)
    except TimeoutError:
        ray.cancel(found, force=True)
        raise MaskRayError(f"finding {uri} took over {RESOLVE_TIMEOUT_S:g} s") from None
    return Path(path), name, version


@ray.remote(num_cpus=0, max_calls=1)
def _find(uri: str) -> tuple[str, str, str | None]:
    from mask_ray import tracking

    tracking.answer_soon()
    resolved = tracking.resolve_model(uri, prefer_kept=True)
    # Plain values: unpickling a ResolvedModel would import MLflow in the replica.
    return str(resolved.path), resolved.name, resolved.version
