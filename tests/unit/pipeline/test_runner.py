"""Stages are done once, whatever stops them: in a real MLflow, with stages that only count."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from filelock import FileLock

from mask_ray import tracking
from mask_ray.config import MaskRayError, home
from mask_ray.pipeline import runner
from mask_ray.pipeline.runner import PipelineError, Result, Results, Stage, in_own_run
from mask_ray.tracking import runs as tracking_runs

pytestmark = pytest.mark.usefixtures("store")

KEY = {"data": "photos"}
NAMES = ["fetch", "train", "deploy"]


class Died(BaseException):
    """Stands for SIGKILL: nothing after it is done, least of all the closing of runs."""


class Line:
    """Three stages, each depending on the one before; `die` is called where one may die."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.gone: set[str] = set()
        self.data = "v1"
        self.die: Callable[[str, str], None] = lambda name, where: None

    def _stages(self) -> list[Stage]:
        return [self._stage(name) for name in NAMES]

    def _stage(self, name: str) -> Stage:
        def inputs(results: Results) -> Result:
            return {"before": list(results.values()), "data": self.data}

        def work(results: Results, run: tracking.Run) -> Result:
            self.die(name, "before")
            self.done[name] += 1
            self.die(name, "after")
            return {"made": f"{name} of {self.data}"}

        return Stage(name, inputs, in_own_run(work), lambda result: name not in self.gone)

    def run(self) -> runner.Outcome:
        return runner.run_stages(self._stages(), "faces", KEY)


def runs() -> Any:
    return mlflow.search_runs(search_all_experiments=True, order_by=["start_time"])


def test_each_stage_is_a_run_below_the_pipeline_s() -> None:
    done = Line().run()

    assert done.results == {name: {"made": f"{name} of v1"} for name in NAMES}
    found = runs()
    below = found[found["tags.mlflow.parentRunId"] == done.run_id]
    assert list(below["tags.mlflow.runName"]) == list(below["tags.pipeline.stage"]) == NAMES
    assert below["tags.pipeline.inputs"].nunique() == 3
    assert len(found) == 4 and set(found["status"]) == {"FINISHED"}
    assert list(done.seconds) == NAMES


def test_what_was_done_with_the_same_inputs_is_skipped() -> None:
    line = Line()
    first, again = line.run(), line.run()

    assert line.done == dict.fromkeys(NAMES, 1)
    assert again.results == first.results and again.seconds == {}
    tags = tracking.Run(again.run_id).tags()
    train = tracking.find_runs("faces", {"pipeline.stage": "train"})
    assert [tags["pipeline.train"]] == [run.run_id for run in train]


def test_other_inputs_are_another_stage() -> None:
    line = Line()
    line.run()
    line.data = "v2"
    assert line.run().results["train"] == {"made": "train of v2"}
    assert line.done == dict.fromkeys(NAMES, 2)


def test_a_stage_whose_work_is_gone_is_done_again() -> None:
    line = Line()
    line.run()
    line.gone = {"deploy"}
    line.run()
    assert line.done == {"fetch": 1, "train": 1, "deploy": 2}


def test_a_failure_names_its_stage_and_a_rerun_goes_on_from_there() -> None:
    line = Line()

    def fail(name: str, where: str) -> None:
        if name == "train":
            raise MaskRayError("no room")

    line.die = fail
    with pytest.raises(PipelineError) as told:
        line.run()
    assert str(told.value) == "stage train failed: no room. Run the same command to resume"
    assert sorted(runs()["status"]) == ["FAILED", "FAILED", "FINISHED"]

    line.die = lambda name, where: None
    line.run()

    assert line.done == dict.fromkeys(NAMES, 1)
    assert list(runs()["status"]) == ["FINISHED"] * 4, "the failed runs are resumed"


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("stage", NAMES)
def test_a_pipeline_that_died_in_a_stage_goes_on_in_the_same_runs(
    stage: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line()

    def die(*at: str) -> None:
        if at == (stage, where):
            raise Died

    line.die = die
    close = tracking_runs._close
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(
            tracking_runs, "_close", lambda *of: close(*of) if of[1] == "FINISHED" else None
        )
        line.run()
    assert "RUNNING" in set(runs()["status"])

    line.die = lambda name, where: None
    done = line.run()

    assert len(runs()) == 4 and set(runs()["status"]) == {"FINISHED"}
    assert done.results["deploy"] == {"made": "deploy of v1"}
    assert line.done == {name: 2 if (name, where) == (stage, "after") else 1 for name in NAMES}


def test_the_same_pipeline_does_not_run_twice_at_a_time() -> None:
    path = home() / "pipelines" / f"{runner.digest_of(KEY)}.lock"
    path.parent.mkdir()
    with (
        FileLock(path),
        pytest.raises(PipelineError, match="another process is running the same pipeline"),
    ):
        Line().run()
    assert len(runs()) == 0


def test_ctrl_c_names_the_stage_and_how_to_resume() -> None:
    line = Line()

    def stop(name: str, where: str) -> None:
        if name == "train":
            raise KeyboardInterrupt("resume with another command")

    line.die = stop
    with pytest.raises(KeyboardInterrupt, match="in stage train; run the same command to resume"):
        line.run()
