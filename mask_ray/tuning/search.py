"""A search for good settings: trials with Ray Tune, each a run below the search's own in MLflow.

A trial trains as any run does, on images and features that are read once for all of them. It is
neither scored on the test split nor exported or registered: the search ends with the settings to
train with. Trials that fall behind are stopped early, by ASHA: Li et al. 2020,
https://arxiv.org/abs/1810.05934.
"""

import math
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from mask_ray import data, ray_internals, tracking
from mask_ray.config import TrainSettings, TuneSettings, home
from mask_ray.data import sources
from mask_ray.progress import say
from mask_ray.training import job as training
from mask_ray.training import resources, resume, workers
from mask_ray.training.worker_config import WorkerConfig
from mask_ray.tuning import trials

# At each rung of ASHA one trial in so many goes on, for so many times as many epochs.
_REDUCTION_FACTOR = 3

# Read by Tune in this process.
_TUNE_ENV = {
    # The last report of a run has no losses.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Metrics are MLflow's; no further files of them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the job, as it does elsewhere.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # What is forgotten when this process dies; unfinished trials go on from their checkpoints.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    # The one of Tune's two outputs that can be turned off.
    "RAY_AIR_NEW_OUTPUT": "0",
}

# A trial's own process only waits for its workers. Tune wants some resource for it; this one puts
# it on a node that stays, and takes no CPU from the workers.
_TRIAL_RESOURCES = {ray_internals.HEAD_NODE: 0.001}


@dataclass(frozen=True)
class _Search:
    """A search that has all it needs to begin.

    Args:
        settings: Of the search.
        drawn: Settings of each trial, by its number.
        job: The search's MLflow run, and the images.
        num_concurrent: Trials at a time.
        folder: Where Tune keeps what a resumed search goes on from, and trials their checkpoints.
    """

    settings: TuneSettings
    drawn: list[TrainSettings]
    job: training.Job
    num_concurrent: int
    folder: Path


def search_settings(settings: TuneSettings) -> dict[str, Any]:
    """Search. Ray must be running.

    Returns:
        The search's MLflow run, the best trial with what was searched of its settings, the
        numbers of trials, and seconds by stage.

    Raises:
        trials.TuningError: no trial came to an end.
        MaskRayError: whatever `training.open_job` raises.
    """
    if not ray_internals.is_train_v2():
        raise trials.TuningError("a search needs Ray Train V2: unset RAY_TRAIN_V2_ENABLED")
    clock = training.Clock()
    # Decided here and kept in the run, so that a resumed search decides alike.
    decided: dict[str, Any] = {
        "search": ",".join(settings.searched),
        "max_concurrent": _num_concurrent(settings),
    }
    settings = settings.model_copy(update=decided)
    drawn = trials.draw(settings)
    with training.open_job(settings, clock) as job:
        folder = home() / "tune" / job.tracked.run_id
        search = _Search(settings, drawn, job, decided["max_concurrent"], folder)
        with clock.stage("features"):
            parts = _parts(search)
        with clock.stage("search"):
            reasons = _run_trials(search, parts)
        found = trials.outcomes(job.tracked, drawn, settings.searched)
        say(trials.table(found))
        best = trials.best(found, reasons)
        _log_best(job.tracked, best, drawn[best.number], clock)
        shutil.rmtree(folder, ignore_errors=True)
    statuses = Counter(outcome.status for outcome in found)
    return {
        "run_id": job.tracked.run_id,
        "best": {
            "run_id": best.run_id,
            "settings": best.chosen,
            "val_loss": round(best.val_loss, 6),
            "val_accuracy": round(best.val_accuracy, 6),
        },
        "num_trials": len(found),
        "num_stopped_early": statuses["stopped early"],
        "num_failed": statuses["failed"],
        "seconds": clock.seconds(),
    }


def stored_settings(run_id: str) -> dict[str, Any]:
    """The settings of an earlier search, by field.

    Raises:
        tracking.TrackingError: there is no such run, or no settings in it.
        resume.ResumeError: it is no search.
    """
    stored = resume.stored_settings(run_id)
    if "num_trials" not in stored:
        raise resume.ResumeError(
            f"run {run_id} is no search but a training run: go on with it by "
            f"python -m jobs.train --resume {run_id}"
        )
    return stored


def _num_concurrent(settings: TuneSettings) -> int:
    grows_to = ray_internals.resources_when_grown()
    resources = grows_to or ray.available_resources()
    return num_concurrent(settings, resources.get("CPU", 0), resources.get("GPU", 0))


def num_concurrent(settings: TuneSettings, num_cpus: float, num_gpus: float) -> int:
    """How many trials run at a time on so many CPUs and GPUs."""
    if settings.max_concurrent is not None:
        return min(settings.max_concurrent, settings.num_trials)
    fitting = [settings.num_trials]
    if settings.use_gpu:
        fitting.append(int(num_gpus / settings.num_workers))
    if settings.cpus_per_worker is not None:
        per_trial = settings.cpus_per_worker * settings.num_workers
        fitting.append(int((num_cpus - data.LEAST_TASK_CPUS) / per_trial))
    elif not settings.use_gpu:
        # One to compute on, and one for the tasks that feed it.
        fitting.append(int(num_cpus / (2 * settings.num_workers)))
    return max(1, min(fitting))


def _plan_trial(settings: TuneSettings, num_concurrent: int) -> resources.Plan:
    """The workers of one trial, with their share of the cluster.

    Raises:
        cluster.ClusterError: the cluster cannot hold so many.
    """
    if num_concurrent == 1:
        return resources.plan_workers(settings)
    num_workers = settings.num_workers * num_concurrent
    together = settings.model_copy(update={"num_workers": num_workers, "min_workers": None})
    try:
        share: Any = resources.plan_workers(together).scaling.resources_per_worker
    except resources.ClusterError as error:
        raise resources.ClusterError(
            f"{num_concurrent} trials at a time are too many (max_concurrent): {error}"
        ) from error
    return resources.plan_workers(settings.model_copy(update={"cpus_per_worker": share["CPU"]}))


def _parts(search: _Search) -> dict[str, Any]:
    """What all trials take from, by reference; their features are computed here."""
    plan = _plan_trial(search.settings, search.num_concurrent)
    return {
        "configs": _worker_configs(search),
        "plan": plan,
        "splits": {name: search.job.splits[name] for name in ("train", "val")},
    }


def _worker_configs(search: _Search) -> list[WorkerConfig]:
    """Return what the workers of each trial need, with the run of the search as theirs."""
    num_threads = _num_threads(search)
    folders: dict[tuple[int, float], Path] = {}
    configs = []
    for drawn in search.drawn:
        config = training.worker_config(drawn, search.job, search.folder / "train")
        config = replace(config, export=False, num_threads=num_threads)
        if workers.needs_features(drawn):
            views = drawn.augmented_views, drawn.augmentation if drawn.augmented_views else 0.0
            if views not in folders:
                own_folder = search.folder / f"features-{len(folders)}"
                folders[views] = training.prepare_features(drawn, search.job, own_folder)
            config = replace(config, features=folders[views])
        configs.append(config)
    return configs


def _num_threads(search: _Search) -> int | None:
    """Of a worker that shares its node with those of other trials."""
    if search.num_concurrent == 1:
        return None
    num_workers = search.num_concurrent * search.settings.num_workers
    return max(1, int(ray.cluster_resources()["CPU"] / num_workers))


def _run_trials(search: _Search, parts: dict[str, Any]) -> list[str]:
    """Run the trials that are not done; why any failed, a line each."""
    os.environ.update(_TUNE_ENV)
    trainable = tune.with_resources(
        tune.with_parameters(_trial_function(), parts=parts),
        tune.PlacementGroupFactory([_TRIAL_RESOURCES]),
    )
    say(
        f"{len(search.drawn)} trials of up to {search.settings.num_epochs} epochs, "
        f"{search.num_concurrent} at a time"
    )
    # Tune writes it as the first trial starts.
    if any(search.folder.glob("experiment_state-*.json")):
        tuner = tune.Tuner.restore(str(search.folder), trainable)
    else:
        tuner = _new_tuner(search, trainable)
    try:
        results: Any = tuner.fit()
    finally:
        for trial in search.job.tracked.nested():
            if trial.status() == "RUNNING":
                trial.set_status("KILLED")
    return [str(error).strip().splitlines()[-1] for error in results.errors]


def _new_tuner(search: _Search, trainable: Any) -> tune.Tuner:
    scheduler = _scheduler(search.settings)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Trials(search, scheduler),
            scheduler=scheduler,
            num_samples=len(search.drawn),
            max_concurrent_trials=search.num_concurrent,
        ),
        run_config=tune.RunConfig(
            name=search.folder.name,
            storage_path=str(search.folder.parent),
            stop=_diverged,
            verbose=0,
        ),
    )


def _scheduler(settings: TuneSettings) -> ASHAScheduler:
    return ASHAScheduler(
        # Trials report every few seconds, not every epoch.
        time_attr="epoch",
        metric="val_loss",
        mode="min",
        max_t=settings.num_epochs,
        grace_period=settings.grace_epochs or max(1, settings.num_epochs // 5),
        reduction_factor=_REDUCTION_FACTOR,
        # They end by themselves.
        stop_last_trials=False,
    )


def _trial_function() -> Any:
    # Defined here, it travels by value: a trial then imports what starting workers needs, not
    # what this module needs.
    def trial(config: dict[str, Any], parts: dict[str, Any]) -> None:
        from dataclasses import replace

        from ray.tune.integration.ray_train import TuneReportCallback

        from mask_ray.training import workers

        workers.trainer(
            parts["plan"],
            replace(parts["configs"][config["number"]], run_id=config["run_id"]),
            parts["splits"],
            callbacks=[TuneReportCallback()],
        ).fit()
        # Nothing is returned: what a trial returns is a report, and Tune waits for ever where
        # that comes while one of the callback's is still in its queue.

    return trial


def _diverged(trial_id: str, result: Mapping[str, Any]) -> bool:
    return math.isnan(result.get("val_loss", 0.0))


class _Trials(Searcher):
    """Hands the trials out in their order, each with an MLflow run, and closes their runs.

    Tune keeps its state every few seconds, and so that of the scheduler, which Tune does not keep.
    """

    def __init__(self, search: _Search, scheduler: ASHAScheduler) -> None:
        super().__init__()
        self._parent_id = search.job.tracked.run_id
        self._drawn = search.drawn
        self._searched = search.settings.searched
        self._num_epochs = search.settings.num_epochs
        self._scheduler = scheduler
        self._handed_out = 0
        self._running: dict[str, int] = {}
        self._run_ids = _run_ids(search.job.tracked)

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        if self._handed_out == len(self._drawn):
            return Searcher.FINISHED
        number = self._handed_out
        self._open(number)
        self._handed_out += 1
        self._running[trial_id] = number
        return {"number": number, "run_id": self._run_ids[number]}

    def _open(self, number: int) -> None:
        """Open the trial's run: again, if it was begun before this search was resumed."""
        if number in self._run_ids:
            tracking.Run(self._run_ids[number]).set_status("RUNNING")
        else:
            parent = tracking.Run(self._parent_id)
            run = parent.open_nested(f"trial-{number}", {"trial": str(number)})
            run.log_params(data.params(self._drawn[number]))
            self._run_ids[number] = run.run_id
        chosen = trials.chosen(self._drawn[number], self._searched)
        say(f"trial {number}: " + ", ".join(f"{name} {value}" for name, value in chosen.items()))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close its run."""
        number = self._running.pop(trial_id)
        run = tracking.Run(self._run_ids[number])
        done = error or (result or {}).get("finished", False)
        early = not done and (result or {}).get("epoch", 0) < self._num_epochs
        run.set_tags({"stopped_early": str(early).lower()})
        run.set_status("FAILED" if error else "FINISHED")
        say(f"trial {number} " + ("failed" if error else "stopped early" if early else "finished"))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Say so: what workers print does not tell of which trial they are."""
        if "val_loss" in result:
            loss = f"val_loss {result['val_loss']:.4f}"
            say(f"trial {self._running[trial_id]} epoch {result['epoch']}  {loss}")

    def save(self, checkpoint_path: str) -> None:
        """Keep what `restore` takes."""
        state = {
            "handed_out": self._handed_out,
            "running": self._running,
            "scheduler": vars(self._scheduler),
        }
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` kept."""
        state = pickle.loads(Path(checkpoint_path).read_bytes())
        self._handed_out, self._running = state["handed_out"], state["running"]
        vars(self._scheduler).update(state["scheduler"])
        # Later than the state: trials may have been begun since.
        self._run_ids = _run_ids(tracking.Run(self._parent_id))
        for number in self._running.values():
            self._open(number)


def _run_ids(tracked: tracking.Run) -> dict[int, str]:
    return {int(run.tags()["trial"]): run.run_id for run in tracked.nested()}


def _log_best(
    tracked: tracking.Run, best: trials.Outcome, trial: TrainSettings, clock: training.Clock
) -> None:
    tracked.set_tags({"best_run_id": best.run_id})
    tracked.log_metrics({"val_loss": best.val_loss, "val_accuracy": best.val_accuracy})
    tracked.log_metrics({f"seconds_{name}": value for name, value in clock.seconds().items()})
    tracked.log_text(trials.as_yaml(trial), "best.yaml")
    told = trials.command(trial.model_copy(update={"data": sources.shown(trial.data)}))
    say(f"train with the best, also kept as best.yaml of the run:\n  {told}")
