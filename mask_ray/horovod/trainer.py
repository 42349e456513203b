"""HorovodTrainer on Ray Train V2.

Ray Train starts, watches and restarts the workers. This module only gives each of them its rank
and the address of Horovod's rendezvous server, through which the workers connect over Gloo. No
ssh and no host names are needed.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from horovod.runner.common.util.hosts import HostInfo, SlotInfo, get_host_assignments
from horovod.runner.gloo_run import create_slot_env_vars
from horovod.runner.http.http_server import (
    RendezvousHandler,
    RendezvousHTTPServer,
    RendezvousServer,
)
from horovod.runner.util.threads import in_thread
from ray.train import Checkpoint, DataConfig, Result, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from mask_ray.config import MaskRayError
from mask_ray.ray_internals.train_controller import Placement, ReservedTrainer


@dataclass
class HorovodConfig(BackendConfig):
    """How the Horovod workers find each other.

    Args:
        nics: Names of the network interfaces to try. By default each worker takes the interface
            that has its node's address, as Ray knows it.
        verbose: Whether the rendezvous server logs its requests.
        timeout_s: Longest wait of a worker for the others at start, in seconds.
    """

    nics: set[str] | None = None
    verbose: int = 0
    timeout_s: int = 300

    @property
    def backend_cls(self) -> type[Backend]:
        """Class that Ray Train calls to set up and end Horovod."""
        return _HorovodBackend


class HorovodTrainer(ReservedTrainer):
    """Runs a training function on N Horovod workers, which restart together when one dies.

    The signature is that of `ray.train.horovod.HorovodTrainer`. The function calls
    `hvd.init()` and may use everything in `ray.train`: `report`, `get_checkpoint`,
    `get_dataset_shard`. `ScalingConfig(num_workers=(low, high))` makes it elastic and
    `FailureConfig(max_failures=N)` bounds the restarts. A MaskRayError causes no restart, since
    the user has to act on it. Ctrl-C ends the workers and is raised as KeyboardInterrupt.

    Two more arguments than that of Ray: `placement` runs the workers in bundles that are reserved
    already, and `while_running` is called every few seconds; an error that it raises ends the run.

    Raises:
        MaskRayError: from `fit`, when a worker or `while_running` raised it.
        ray.train.TrainingFailedError: from `fit`, when the function fails more often than
            allowed.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], None] | Callable[[dict[str, Any]], None],
        *,
        train_loop_config: dict[str, Any] | None = None,
        horovod_config: HorovodConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        dataset_config: DataConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
        placement: Placement | None = None,
        while_running: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            placement=placement,
            while_running=while_running,
            is_final=_is_for_user,
            train_loop_per_worker=train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=horovod_config or HorovodConfig(),
            scaling_config=scaling_config,
            dataset_config=dataset_config,
            run_config=run_config,
            datasets=datasets,
            metadata=metadata,
            resume_from_checkpoint=resume_from_checkpoint,
        )

    def fit(self) -> Result:
        """Run the workers until they end, or fail with an error that no restart mends."""
        try:
            return super().fit()
        except WorkerGroupError as error:
            raise _for_user(error) or error from error


def _is_for_user(error: Exception) -> bool:
    return isinstance(error, WorkerGroupError) and _for_user(error) is not None


def _for_user(error: WorkerGroupError) -> MaskRayError | None:
    """Return the MaskRayError of a worker, if one caused the failure."""
    failures = error.worker_failures.values()
    return next((failure for failure in failures if isinstance(failure, MaskRayError)), None)


class _HorovodBackend(Backend):
    # NCCL must see all GPUs of the node; each worker chooses its own by local rank.
    share_cuda_visible_devices = True

    _server: "_NodeRendezvousServer | None" = None

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, HorovodConfig)
        node_ips = [worker.metadata.node_ip for worker in worker_group.get_workers()]
        slots = assign_slots(node_ips)
        address = ray.util.get_node_ip_address()
        self._server = _NodeRendezvousServer(address, verbose=backend_config.verbose)
        port = self._server.start()
        self._server.init(slots)
        shared_env = rendezvous_env(address, port, backend_config)
        ray.get(
            [
                worker_group.execute_single_async(
                    slot.rank,
                    _set_environment,
                    shared_env | create_slot_env_vars(slot),
                    node_ips[slot.rank],
                    backend_config.nics,
                )
                for slot in slots
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


class _NodeRendezvousServer(RendezvousServer):
    """Horovod's rendezvous server, which listens on one address; the original listens on all."""

    def __init__(self, address: str, verbose: int) -> None:
        super().__init__(verbose)
        self._address = address

    def start(self, handler_cls: type = RendezvousHandler) -> int:
        self._httpd = RendezvousHTTPServer((self._address, 0), handler_cls, self._verbose)
        self._listen_thread = in_thread(target=self._httpd.serve_forever)
        return int(self._httpd.server_address[1])

    def stop(self) -> None:
        super().stop()
        self._httpd.server_close()


def assign_slots(node_ips: list[str]) -> list[SlotInfo]:
    """Give every worker its rank, local rank and cross rank.

    Args:
        node_ips: Address of each worker's node, by world rank. Workers of one node must be
            contiguous, as Ray Train ranks them.
    """
    hosts = [HostInfo(node_ip, count) for node_ip, count in Counter(node_ips).items()]
    slots: list[SlotInfo] = get_host_assignments(hosts, len(node_ips))
    assert [slot.hostname for slot in slots] == node_ips, "ranks of one node are not contiguous"
    return slots


def rendezvous_env(address: str, port: int, config: HorovodConfig) -> dict[str, str]:
    """Return the environment with which a Horovod process finds its rendezvous server."""
    return {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(config.timeout_s),
    }


def choose_interface(node_ip: str, nics: set[str] | None = None) -> str:
    """Return the name of the network interface of this machine that Horovod should use.

    Args:
        node_ip: The node's address, as Ray knows it.
        nics: Names to choose from instead; the alphabetically first that exists is used.

    Raises:
        RuntimeError: no interface has that address, or none of the names exists.
    """
    interfaces = psutil.net_if_addrs()
    if nics:
        held = sorted(nics & interfaces.keys())
        wanted = f"is called {' or '.join(sorted(nics))}"
    else:
        held = [
            n for n, addresses in interfaces.items() if node_ip in {a.address for a in addresses}
        ]
        wanted = f"holds its Ray address {node_ip}"
    if not held:
        raise RuntimeError(
            f"no network interface of this node {wanted}; found {', '.join(sorted(interfaces))}. "
            "Name one of them in HorovodConfig(nics={...})"
        )
    return held[0]


def _set_environment(env: dict[str, str], node_ip: str, nics: set[str] | None) -> None:
    os.environ.update(env, HOROVOD_GLOO_IFACE=choose_interface(node_ip, nics))
