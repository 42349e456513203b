"""Search for good settings: trials with Ray Tune, each a nested MLflow run of the search's run.

Trials train like any run, on images and features that are read once for all of them. They are not
evaluated on the test split, exported or registered: the result of a search is settings. Trials
that fall behind are stopped early, by ASHA: Li et al. 2020, https://arxiv.org/abs/1810.05934.
"""

import os
import pickle
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from mask_ray import data, ray_internals, tracking
from mask_ray.config import TrainSettings, TuneSettings, home
from mask_ray.files import make_private
from mask_ray.progress import say
from mask_ray.training import resume, workers
from mask_ray.training.job import Clock, Job, open_job, prepare_features, worker_config
from mask_ray.training.worker_config import WorkerConfig
from mask_ray.tuning import trials

# At each rung of ASHA one trial in three continues, for three times as many epochs.
_REDUCTION_FACTOR = 3

# Environment variables that Tune reads in this process.
_TUNE_ENV = {
    # The last report of a run has no losses.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # MLflow keeps the metrics, so Tune need not write them to files too.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C must end the job, as in other jobs.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # If this process dies, the last seconds of Tune's state are lost; trials have checkpoints.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    # Of Tune's two outputs only the old one can be turned off.
    "RAY_AIR_NEW_OUTPUT": "0",
}

# A trial's own process only waits for its workers. Tune requires a resource for it; this one
# places it on the head node, which stays, and takes no CPU from the workers.
_TRIAL_RESOURCES = {ray_internals.HEAD_NODE: 0.001}


@dataclass(frozen=True)
class _Search:
    """An open search, ready to start its trials.

    Args:
        settings: Settings of the search.
        drawn: Settings of each trial, by its number.
        job: The search's MLflow run, and the images.
        num_concurrent: Number of trials that run at a time.
        folder: Folder of Tune's state, from which a search resumes, and of the checkpoints.
    """

    settings: TuneSettings
    drawn: list[TrainSettings]
    job: Job
    num_concurrent: int
    folder: Path


def search_settings(settings: TuneSettings) -> dict[str, Any]:
    """Run the trials and find the best one. Ray must be running.

    Returns:
        The search's run id, the best trial with its searched settings, numbers of trials, and
        seconds by stage.

    Raises:
        trials.TuningError: all trials failed.
        MaskRayError: see `open_job`.
    """
    if not ray_internals.is_train_v2():
        raise trials.TuningError("a search needs Ray Train V2: unset RAY_TRAIN_V2_ENABLED")
    clock = Clock()
    # Stored with the run, so that a resumed search uses the same values.
    decided: dict[str, Any] = {
        "search": ",".join(settings.searched),
        "max_concurrent": _trials_at_once(settings),
    }
    settings = settings.model_copy(update=decided)
    drawn = trials.draw(settings)
    with open_job(settings, clock, num_trials=decided["max_concurrent"]) as job:
        folder = make_private(home() / "tune") / job.tracked.run_id
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
    """Return the settings of an earlier search, by field.

    Raises:
        tracking.TrackingError: the run or its settings do not exist.
        resume.ResumeError: the run is a training run.
    """
    stored = resume.stored_settings(run_id)
    if "num_trials" not in stored:
        raise resume.ResumeError(
            f"run {run_id} is a training run, not a search: resume it with "
            f"python -m jobs.train --resume {run_id}"
        )
    return stored


def _trials_at_once(settings: TuneSettings) -> int:
    grows_to = ray_internals.resources_when_grown()
    resources = grows_to or ray.available_resources()
    return num_concurrent(settings, resources.get("CPU", 0), resources.get("GPU", 0))


def num_concurrent(settings: TuneSettings, num_cpus: float, num_gpus: float) -> int:
    """Return how many trials run at a time on so many CPUs and GPUs."""
    if settings.max_concurrent is not None:
        return min(settings.max_concurrent, settings.num_trials)
    fitting = [settings.num_trials]
    if settings.use_gpu:
        fitting.append(int(num_gpus / settings.num_workers))
    if settings.cpus_per_worker is not None:
        per_trial = settings.cpus_per_worker * settings.num_workers
        fitting.append(int((num_cpus - data.LEAST_TASK_CPUS) / per_trial))
    elif not settings.use_gpu:
        # Two CPUs for each worker: one to compute on, one for the tasks that feed it.
        fitting.append(int(num_cpus / (2 * settings.num_workers)))
    return max(1, min(fitting))


def _parts(search: _Search) -> dict[str, Any]:
    """Compute the features, and return what the trials share; Ray passes it by reference."""
    return {
        "configs": _worker_configs(search),
        "plan": search.job.plan,
        "num_slots": search.num_concurrent,
        "splits": {name: search.job.splits[name] for name in ("train", "val")},
    }


def _worker_configs(search: _Search) -> list[WorkerConfig]:
    """Return what the workers of each trial need, with the run of the search as theirs."""
    num_threads = _num_threads(search)
    folders: dict[tuple[int, float], Path] = {}
    configs = []
    for drawn in search.drawn:
        config = worker_config(drawn, search.job, search.folder / "train")
        config = replace(config, export=False, num_threads=num_threads)
        if workers.needs_features(drawn):
            views = drawn.augmented_views, drawn.augmentation if drawn.augmented_views else 0.0
            if views not in folders:
                own_folder = search.folder / f"features-{len(folders)}"
                folders[views] = prepare_features(drawn, search.job, own_folder)
            config = replace(config, features=folders[views])
        configs.append(config)
    return configs


def _num_threads(search: _Search) -> int | None:
    """Return the threads of a worker; None if no other trial shares its node."""
    if search.num_concurrent == 1:
        return None
    num_workers = search.num_concurrent * search.settings.num_workers
    return max(1, int(ray.cluster_resources()["CPU"] / num_workers))


def _run_trials(search: _Search, parts: dict[str, Any]) -> list[str]:
    """Run the trials that are not done; return the last line of each error."""
    os.environ.update(_TUNE_ENV)
    trainable = tune.with_resources(
        tune.with_parameters(_trial_function(), parts=parts),
        tune.PlacementGroupFactory([_TRIAL_RESOURCES]),
    )
    say(
        f"{len(search.drawn)} trials of up to {search.settings.num_epochs} epochs, "
        f"{search.num_concurrent} at a time"
    )
    # Tune writes this file when the first trial starts.
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
            verbose=0,
        ),
    )


def _scheduler(settings: TuneSettings) -> ASHAScheduler:
    return ASHAScheduler(
        # Not all epochs are reported, so ASHA must count epochs, not reports.
        time_attr="epoch",
        metric="val_loss",
        mode="min",
        max_t=settings.num_epochs,
        grace_period=settings.grace_epochs or max(1, settings.num_epochs // 5),
        reduction_factor=_REDUCTION_FACTOR,
        # Trials end by themselves after `max_t` epochs.
        stop_last_trials=False,
    )


def _trial_function() -> Any:
    # A local function travels by value, so trials need not import this module.
    def trial(config: dict[str, Any], parts: dict[str, Any]) -> None:
        from dataclasses import replace

        from ray.tune.integration.ray_train import TuneReportCallback

        from mask_ray.training import workers

        plan = parts["plan"]
        num_workers = plan.num_bundles // parts["num_slots"]
        workers.trainer(
            replace(plan, first_bundle=config["slot"] * num_workers),
            replace(parts["configs"][config["number"]], run_id=config["run_id"]),
            parts["splits"],
            callbacks=[TuneReportCallback()],
        ).fit()
        # Return nothing: Tune would take it for a report, and hang if a report of the callback
        # is still in its queue.

    return trial


class _Trials(Searcher):
    """Gives Tune the trials in order, opens an MLflow run for each, and closes it.

    Tune saves this object's state every few seconds. The state includes the scheduler's, which
    Tune itself does not save.
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
        # Each trial that runs has a slot: its part of the bundles that are reserved for all.
        self._num_slots = search.num_concurrent
        self._slots: dict[str, int] = {}
        self._run_ids = _run_ids(search.job.tracked)

    def suggest(self, trial_id: str) -> Any:
        """Open the run of the next trial; return its number, its run id and its bundles."""
        if self._handed_out == len(self._drawn):
            return Searcher.FINISHED
        number = self._handed_out
        self._open(number)
        self._handed_out += 1
        self._running[trial_id] = number
        taken = Counter(self._slots.values())
        slot = min(range(self._num_slots), key=lambda each: taken[each])
        self._slots[trial_id] = slot
        return {"number": number, "run_id": self._run_ids[number], "slot": slot}

    def _open(self, number: int) -> None:
        """Open the trial's run, or reopen it in a resumed search."""
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
        """Close the trial's run with its status."""
        number = self._running.pop(trial_id)
        self._slots.pop(trial_id)
        run = tracking.Run(self._run_ids[number])
        done = error or (result or {}).get("finished", False)
        early = not done and (result or {}).get("epoch", 0) < self._num_epochs
        run.set_tags({"stopped_early": str(early).lower()})
        run.set_status("FAILED" if error else "FINISHED")
        say(f"trial {number} " + ("failed" if error else "stopped early" if early else "finished"))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Print the loss with the trial's number, which the workers' lines do not have."""
        if "val_loss" in result:
            loss = f"val_loss {result['val_loss']:.4f}"
            say(f"trial {self._running[trial_id]} epoch {result['epoch']}  {loss}")

    def save(self, checkpoint_path: str) -> None:
        """Write the state that `restore` reads."""
        state = {
            "handed_out": self._handed_out,
            "running": self._running,
            "slots": self._slots,
            "scheduler": vars(self._scheduler),
        }
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Restore a saved state, and reopen the runs of the trials that were running."""
        state = pickle.loads(Path(checkpoint_path).read_bytes())
        self._handed_out, self._running = state["handed_out"], state["running"]
        self._slots = state["slots"]
        vars(self._scheduler).update(state["scheduler"])
        # Newer than the state: trials may have started since it was saved.
        self._run_ids = _run_ids(tracking.Run(self._parent_id))
        for number in self._running.values():
            self._open(number)


def _run_ids(tracked: tracking.Run) -> dict[int, str]:
    return {int(run.tags()["trial"]): run.run_id for run in tracked.nested()}


def _log_best(
    tracked: tracking.Run, best: trials.Outcome, trial: TrainSettings, clock: Clock
) -> None:
    tracked.set_tags({"best_run_id": best.run_id})
    tracked.log_metrics({"val_loss": best.val_loss, "val_accuracy": best.val_accuracy})
    tracked.log_metrics({f"seconds_{name}": value for name, value in clock.seconds().items()})
    tracked.log_text(trials.as_yaml(trial), "best.yaml")
    command = trials.command(trial)
    say(f"train with the best settings (also in the artifact best.yaml):\n  {command}")
