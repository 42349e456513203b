"""Private names of Ray, each behind a function that says what it stands for.

Ray may rename any of them in any release: an upgrade starts with this folder. All were seen in Ray
2.60. They are imported where they are used, so that a process pays only for the ones it calls.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset
    from ray.serve.schema import ServeDeploySchema
    from ray.util.placement_group import PlacementGroup

# A resource of the head node alone, which `ray start --head` and `ray.init` define.
HEAD_NODE = "node:__internal_head__"

# Read when Ray starts.
START_ENVIRONMENT = {
    # Idle worker processes beyond this number are ended after a second. Ray's own limit is the
    # number of free CPUs, which is 0 while a run reserves them all: each of the run's tasks would
    # then wait for a new process and its imports, seconds of CPU each.
    "RAY_num_workers_soft_limit": str((os.cpu_count() or 1) + 4),
    # While the folder of logs has fewer files than this, Ray's log monitor lists it ten times a
    # second, as long as that Ray runs. Otherwise it lists it twice a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
}

# Longest wait for an answer of Serve's controller.
_SERVE_TIMEOUT_S = 30


def is_train_v2() -> bool:
    """Return whether `ray.train` is Ray Train V2 in this process.

    `ray.train.v2._internal.constants.is_v2_enabled` reads `RAY_TRAIN_V2_ENABLED`.
    """
    from ray.train.v2._internal.constants import is_v2_enabled

    return bool(is_v2_enabled())


def resources_when_grown() -> Mapping[str, float] | None:
    """Return the resources of an autoscaling cluster at its largest; None if it does not scale.

    `ray._private.state.state` holds the cluster's configuration, which no public name gives.
    """
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def free_resources_by_node() -> list[dict[str, float]]:
    """Return the resources that are free on each node.

    `ray._private.state.state`; public `ray.available_resources` adds the nodes up.
    """
    from ray._private.state import state

    return [*state.available_resources_per_node().values()]


def cpus_in_words() -> str:
    """Return how many CPUs of the cluster are free, for messages."""
    import ray

    free = sum(node.get("CPU", 0) for node in free_resources_by_node())
    return f"{free:g} of {ray.cluster_resources().get('CPU', 0):g} CPUs free"


@contextmanager
def data_tasks_in(group: "PlacementGroup") -> Iterator[None]:
    """Run the tasks of the data sets that this process makes in the bundles of a placement group.

    `ray.data.DataContext.scheduling_strategy`, which Ray deprecates and offers no other way for.
    """
    import ray.data
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    context = ray.data.DataContext.get_current()
    before = context.scheduling_strategy, context.scheduling_strategy_large_args
    placed = PlacementGroupSchedulingStrategy(group)
    _schedule_data_tasks(context, placed, placed)
    try:
        yield
    finally:
        _schedule_data_tasks(context, *before)


def _schedule_data_tasks(context: "DataContext", small: Any, large: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.scheduling_strategy, context.scheduling_strategy_large_args = small, large


def are_data_tasks_placed() -> bool:
    """Return whether the tasks of new data sets run in a placement group; see `data_tasks_in`."""
    import ray.data

    return not isinstance(ray.data.DataContext.get_current().scheduling_strategy, str)


def last_started_address() -> str | None:
    """Return the address of the Ray that was last started on this machine; it may have ended.

    `ray._private.utils.read_ray_address`: where Ray's commands look without `RAY_ADDRESS`.
    """
    from ray._private.utils import read_ray_address

    return read_ray_address() or None


def started_ray() -> bool:
    """Return whether this process started the Ray that it uses, which then ends with it.

    `ray._private.worker._global_node` is the node that this process started or joined.
    """
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.head)


def submission_id() -> str | None:
    """Return the id of the Ray job that this driver was submitted as; None outside a job.

    `ray job submit` leaves the job's configuration in an environment variable.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    found: str | None = submitted.get("metadata", {}).get("job_submission_id")
    return found


def train_logger_names() -> tuple[str, ...]:
    """Return the loggers on which Ray Train reports every checkpoint of a worker.

    The module `ray.train.v2._internal.execution.context` names its logger by its file.
    """
    from ray.train.v2._internal.execution import context

    return "ray.train", context.__file__


def failure_policy(failure_config: Any, is_final: Callable[[Exception], bool]) -> Any:
    """Return a policy for Ray Train's controller that does not restart after a final error.

    A subclass of `ray.train.v2._internal.execution.failure_handling.DefaultFailurePolicy`.

    Args:
        failure_config: A `ray.train.FailureConfig`, for all other errors.
        is_final: Whether a training error is one that no restart mends.
    """
    from ray.train.v2._internal.execution.failure_handling import (
        DefaultFailurePolicy,
        FailureDecision,
    )

    class Policy(DefaultFailurePolicy):
        def make_decision(self, training_failed_error: Any) -> FailureDecision:
            if is_final(training_failed_error):
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    return Policy(failure_config)


def num_executions(context: "DataContext | None") -> int:
    """Return how often the data set of this context has been executed; 0 without a context.

    `DataContext._execution_idx`, by which Ray's own readers shuffle files in every epoch.
    """
    return context._execution_idx if context is not None else 0


def restart_executions(dataset: "Dataset") -> None:
    """Make the next execution of a data set its first: see `num_executions`."""
    dataset.context._execution_idx = 0


def on_worker_output(
    handler: Callable[[dict[str, Any]], None], *, of_all_jobs: bool = False
) -> None:
    """Call a function with the output of workers as Ray forwards it to this driver.

    `ray._private.ray_logging.global_worker_stdstream_dispatcher`, by which Ray prints it too. A
    batch of lines of one process is a dict with `lines`, `pid`, `job`, `is_err` and others.

    Args:
        handler: The function. It replaces the one of an earlier call.
        of_all_jobs: Whether it gets the output of other jobs too. Once a driver uses Serve, Ray
            forwards that: `_filter_logs_by_job` in `ray.serve._private.api`.
    """
    import ray
    from ray._private.ray_logging import global_worker_stdstream_dispatcher

    own = ray.get_runtime_context().get_job_id()

    def handle(batch: dict[str, Any]) -> None:
        # What belongs to no job, such as the autoscaler's log, has none.
        if of_all_jobs or batch.get("job") in (None, "", own):
            handler(batch)

    global_worker_stdstream_dispatcher.remove_handler("mask_ray")
    global_worker_stdstream_dispatcher.add_handler("mask_ray", handle)


def autoscaler_events(lines: Sequence[str]) -> Iterator[str]:
    """Return what Ray's autoscaler means for people among the lines of its log.

    `ray._private.worker.filter_autoscaler_events`: the log's other lines tell the state of the
    cluster, every five seconds.
    """
    from ray._private.worker import filter_autoscaler_events

    return filter_autoscaler_events(list(lines))


def mute_upload() -> None:
    """Mute what this process prints as it uploads a working directory, except its warnings.

    `ray._private.runtime_env.packaging` prints a line for each folder that has a .gitignore, at
    each of several walks; `.working_dir` has one warning, that .venv is not uploaded.
    """
    for name, level in {
        "ray.dashboard.modules.dashboard_sdk": logging.WARNING,
        "ray._private.runtime_env.packaging": logging.WARNING,
        "ray._private.runtime_env.working_dir": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)


def submitted_job_of_caller() -> Callable[[], str | None]:
    """Return a function that returns the id of the job that `ray job submit` has submitted so far.

    For its hook, which `submit` of `ray.dashboard.modules.job.cli` calls before it has one: the
    variable `job_id` of `submit` gets it. None before that, and in any other caller.
    """
    submit = sys._getframe(2)

    def job_id() -> str | None:
        found = submit.f_locals.get("job_id")
        return found if isinstance(found, str) and "client" in submit.f_locals else None

    return job_id


def serve_http_host() -> str | None:
    """Return the address that Ray Serve listens on; None if it does not run.

    Raises:
        TimeoutError: as `serve_http_address`.
    """
    address = serve_http_address()
    return None if address is None else address[0]


def serve_http_address() -> tuple[str, int] | None:
    """Return the address and port that Ray Serve listens on; None if it does not run.

    `SERVE_CONTROLLER_NAME` and `SERVE_NAMESPACE` of `ray.serve._private.constants` name the actor
    that knows it; public `serve.status()` does not say it.

    Raises:
        TimeoutError: the actor does not answer.
    """
    import ray

    if not ray.is_initialized():
        return None
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
    # Not ray.get, which logs a warning in an async actor such as a replica.
    options: Any = controller.get_http_config.remote().future().result(_SERVE_TIMEOUT_S)
    return options.host, options.port


def deploy_to_serve(config: "ServeDeploySchema") -> None:
    """Do what `serve run` does with a file: start Serve unless it runs, and deploy. No waiting.

    `ray.serve._private.api.serve_start` gives the client that has `deploy_apps`; public `serve.run`
    builds applications in this process, whose environment may not be that of the cluster.

    Args:
        config: A `ray.serve.schema.ServeDeploySchema`.
    """
    from ray.serve._private.api import serve_start
    from ray.serve.config import gRPCOptions

    client = serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=config.proxy_location,
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        controller_options=config.controller_options,
    )
    client.deploy_apps(config, _blocking=False)


def get_serve_logs_dir() -> str:
    """Return the folder on this node where Ray Serve writes its logs.

    `ray.serve._private.logging_utils.get_serve_logs_dir`.
    """
    from ray.serve._private import logging_utils

    return str(logging_utils.get_serve_logs_dir())
