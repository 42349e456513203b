"""Stages in order, each a run below the pipeline's run in MLflow, and each done once.

A stage is known by its name and a digest of its inputs. Where a finished run has both as tags,
its result is taken, and nothing is done. A stage that was cut off, even by SIGKILL, goes on in the
run that it had begun. What stages do is not known here.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from mask_ray import tracking
from mask_ray.config import MaskRayError, home, tracking_uri
from mask_ray.progress import say

RESULT_FILE = "result.json"
_PIPELINE_TAG = "pipeline"
_STAGE_TAG = "pipeline.stage"
_INPUTS_TAG = "pipeline.inputs"

Result = dict[str, Any]
Results = Mapping[str, Result]


class PipelineError(MaskRayError):
    """The pipeline stopped; the message names the stage."""


@dataclass(frozen=True)
class Attempt:
    """The run in which a stage is to be done.

    Args:
        experiment: Where a new one goes.
        tags: What it is found by.
        cut_off: The id of the run in which the stage was begun before, to go on with.
    """

    experiment: str
    tags: dict[str, str]
    cut_off: str | None

    @contextmanager
    def open(self) -> Iterator[tracking.Run]:
        """The run, closed as it ends."""
        with tracking.start_run(self.experiment, self.tags, self.cut_off) as run:
            yield run


@dataclass(frozen=True)
class Stage:
    """One step.

    Args:
        name: Of a word.
        inputs: Given the results so far, all that the own result depends on; JSON values.
        work: Given the results so far, does it, in a run with the attempt's tags that ends with
            the result in `RESULT_FILE`.
        holds: Whether what an earlier run made is still there.
    """

    name: str
    inputs: Callable[[Results], Result]
    work: Callable[[Results, Attempt], Result]
    holds: Callable[[Result], bool] = field(default=lambda result: True)


def in_own_run(
    work: Callable[[Results, tracking.Run], Result],
) -> Callable[[Results, Attempt], Result]:
    """The `Stage.work` of a function that opens no run by itself."""

    def done(results: Results, attempt: Attempt) -> Result:
        with attempt.open() as run:
            result = work(results, run)
            run.log_json(result, RESULT_FILE)
        return result

    return done


@dataclass(frozen=True)
class Done:
    """A pipeline that has come to its end.

    Args:
        run_id: Its MLflow run.
        results: Of each stage.
        seconds: That each took; of a stage that was skipped, none are told.
    """

    run_id: str
    results: dict[str, Result]
    seconds: dict[str, float]


def run_stages(stages: Sequence[Stage], experiment: str, key: Mapping[str, Any]) -> Done:
    """Do all stages that are not done.

    Args:
        stages: In their order.
        experiment: Of MLflow.
        key: What the pipeline is known by: an unfinished one with the same is gone on with.

    Raises:
        PipelineError: a stage failed, or the same pipeline is going on in another process.
    """
    identity = {_PIPELINE_TAG: digest_of(key)}
    with _lock(identity[_PIPELINE_TAG]):
        begun = _unfinished(tracking.find_runs(experiment, identity)[:1])
        named = identity | tracking.name_tag(_PIPELINE_TAG)
        with tracking.start_run(experiment, named, begun) as parent:
            verb = "begins" if begun is None else "goes on"
            say(f"pipeline {verb}: MLflow run {parent.run_id} in {tracking_uri()}")
            done = Done(parent.run_id, {}, {})
            for stage in stages:
                with _named(stage):
                    done.results[stage.name] = _run_stage(stage, experiment, parent, done)
    return done


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def _lock(digest: str) -> Iterator[None]:
    """Keep the same pipeline from running twice at a time. A process that dies lets go of it."""
    path = home() / "pipelines" / f"{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise PipelineError("the same pipeline is going on in another process") from error


def _unfinished(runs: Sequence[tracking.Run]) -> str | None:
    return next((run.run_id for run in runs if run.status() != "FINISHED"), None)


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    try:
        yield
    except MaskRayError as error:
        raise PipelineError(
            f"stage {stage.name} failed: {error}. The same command goes on from there"
        ) from error


def _run_stage(stage: Stage, experiment: str, parent: tracking.Run, done: Done) -> Result:
    inputs = stage.inputs(done.results)
    tags = {_STAGE_TAG: stage.name, _INPUTS_TAG: digest_of({"stage": stage.name} | inputs)}
    own_tag = f"{_PIPELINE_TAG}.{stage.name}"
    runs = tracking.find_runs(experiment, tags)
    for earlier in runs:
        if earlier.status() == "FINISHED":
            result: Result = earlier.load_json(RESULT_FILE)
            if stage.holds(result):
                say(f"stage {stage.name}: done before, in run {earlier.run_id}")
                parent.set_tags({own_tag: earlier.run_id})
                return result
    own = {run.run_id for run in parent.nested()}
    cut_off = _unfinished([run for run in runs if run.run_id in own])
    say(f"stage {stage.name}: " + ("begins" if cut_off is None else f"goes on in run {cut_off}"))
    started = time.perf_counter()
    attempt = Attempt(experiment, tags | parent.nested_tags(stage.name), cut_off)
    result = stage.work(done.results, attempt)
    done.seconds[stage.name] = round(time.perf_counter() - started, 2)
    parent.log_metrics({f"seconds_{stage.name}": done.seconds[stage.name]})
    parent.set_tags({own_tag: tracking.find_runs(experiment, tags)[0].run_id})
    return result
