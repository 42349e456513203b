"""Run stages in order, each once, each in an MLflow run nested in the pipeline's run.

A stage is identified by its name and a digest of its inputs. If a finished run has both as tags,
its result is reused and the stage is skipped. A stage that was interrupted, even by SIGKILL, is
resumed in its own run. What stages do is up to them.
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
from mask_ray.files import make_private
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
    """The MLflow run of a stage: a new one, or an interrupted one to resume.

    Args:
        experiment: Experiment of a new run.
        tags: Tags that identify the run.
        resume: Id of the interrupted run; None for a new one.
    """

    experiment: str
    tags: dict[str, str]
    resume: str | None

    @contextmanager
    def open(self) -> Iterator[tracking.Run]:
        """Open the run, and close it at the end."""
        tags = tracking.name_tag(self.tags[_STAGE_TAG]) | self.tags
        with tracking.start_run(self.experiment, tags, self.resume) as run:
            yield run


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Args:
        name: One word.
        inputs: Given the earlier stages' results, returns all that this stage's result depends
            on, as JSON values.
        work: Given the earlier stages' results, does the stage in the attempt's run, and stores
            the result there as `RESULT_FILE`.
        is_valid: Given the result of a finished run, returns whether what it made still exists.
    """

    name: str
    inputs: Callable[[Results], Result]
    work: Callable[[Results, Attempt], Result]
    is_valid: Callable[[Result], bool] = field(default=lambda result: True)


def in_own_run(
    work: Callable[[Results, tracking.Run], Result],
) -> Callable[[Results, Attempt], Result]:
    """Turn a function that opens no run itself into a `Stage.work`."""

    def run_it(results: Results, attempt: Attempt) -> Result:
        with attempt.open() as run:
            result = work(results, run)
            run.log_json(result, RESULT_FILE)
        return result

    return run_it


@dataclass(frozen=True)
class Outcome:
    """Results of a pipeline's stages.

    Args:
        run_id: MLflow run of the pipeline.
        results: Result of each stage.
        seconds: Duration of each stage that was not skipped.
    """

    run_id: str
    results: dict[str, Result]
    seconds: dict[str, float]


def run_stages(stages: Sequence[Stage], experiment: str, key: Mapping[str, Any]) -> Outcome:
    """Run all stages, except those whose results can be reused.

    Args:
        stages: Stages in order.
        experiment: MLflow experiment.
        key: JSON values that identify the pipeline. An unfinished pipeline with the same key is
            resumed.

    Raises:
        PipelineError: a stage failed, or another process runs the same pipeline.
    """
    identity = {_PIPELINE_TAG: digest_of(key)}
    with _lock(identity[_PIPELINE_TAG]):
        resume = _first_unfinished(tracking.find_runs(experiment, identity)[:1])
        tags = identity | tracking.name_tag(_PIPELINE_TAG)
        with tracking.start_run(experiment, tags, resume) as parent:
            verb = "starts" if resume is None else "resumes"
            say(f"pipeline {verb}: MLflow run {parent.run_id} in {tracking_uri()}")
            outcome = Outcome(parent.run_id, {}, {})
            for stage in stages:
                with _naming_stage(stage):
                    outcome.results[stage.name] = _run_stage(stage, experiment, parent, outcome)
    return outcome


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def _lock(digest: str) -> Iterator[None]:
    """Lock the pipeline for this process; the lock ends with the process."""
    path = home() / "pipelines" / f"{digest}.lock"
    make_private(path.parent)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise PipelineError("another process is running the same pipeline") from error


def _first_unfinished(runs: Sequence[tracking.Run]) -> str | None:
    return next((run.run_id for run in runs if run.status() != "FINISHED"), None)


@contextmanager
def _naming_stage(stage: Stage) -> Iterator[None]:
    try:
        yield
    except MaskRayError as error:
        raise PipelineError(
            f"stage {stage.name} failed: {error}. Run the same command to resume"
        ) from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"in stage {stage.name}; run the same command to resume") from stop


def _run_stage(stage: Stage, experiment: str, parent: tracking.Run, outcome: Outcome) -> Result:
    inputs = stage.inputs(outcome.results)
    tags = {_STAGE_TAG: stage.name, _INPUTS_TAG: digest_of({"stage": stage.name} | inputs)}
    stage_tag = f"{_PIPELINE_TAG}.{stage.name}"
    runs = tracking.find_runs(experiment, tags)
    for earlier in runs:
        if earlier.status() == "FINISHED":
            result: Result = earlier.load_json(RESULT_FILE)
            if stage.is_valid(result):
                say(f"stage {stage.name}: skipped, done in run {earlier.run_id}")
                parent.set_tags({stage_tag: earlier.run_id})
                return result
    nested = {run.run_id for run in parent.nested()}
    resume = _first_unfinished([run for run in runs if run.run_id in nested])
    say(f"stage {stage.name}: " + ("starts" if resume is None else f"resumes in run {resume}"))
    started = time.perf_counter()
    attempt = Attempt(experiment, tags | parent.nested_tags(stage.name), resume)
    result = stage.work(outcome.results, attempt)
    seconds = round(time.perf_counter() - started, 2)
    outcome.seconds[stage.name] = seconds
    parent.log_metrics({f"seconds_{stage.name}": seconds})
    parent.set_tags({stage_tag: tracking.find_runs(experiment, tags)[0].run_id})
    return result
