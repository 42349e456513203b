"""The pipeline's stages: fetch, inspect, train, evaluate, promote, deploy, smoke-test."""

import signal
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mask_ray import data, evaluation, tracking
from mask_ray.config import (
    CHAMPION,
    DataSettings,
    EvaluateSettings,
    PipelineSettings,
    PromotionRule,
    ReportSettings,
    RunSettings,
    TrainSettings,
    Uri,
    changeable_fields,
)
from mask_ray.data import sources
from mask_ray.data.sources import fingerprint
from mask_ray.evaluation import grounds, promotion
from mask_ray.evaluation.comparison import Figures
from mask_ray.evaluation.run import evaluate
from mask_ray.images import synthetic
from mask_ray.inspection.run import as_json, html, inspect
from mask_ray.models.predictor import Predictor
from mask_ray.pipeline import live_service
from mask_ray.pipeline.runner import (
    Attempt,
    PipelineError,
    Result,
    Results,
    Stage,
    in_own_run,
    run_stages,
)
from mask_ray.progress import say, stderr
from mask_ray.ray_internals import started_ray
from mask_ray.serving import service
from mask_ray.training.run import train_model

_RULE = set(PromotionRule.model_fields)
# Settings of how a run is done, not of what it makes. A change of these alone leaves the training
# and the pipeline the same.
_ONLY_HOW = changeable_fields(TrainSettings) - {"quantize", "register_as", "promote"} - _RULE
_NOT_OF_TRAINING = _ONLY_HOW | _RULE | {"experiment", "promote"}
_NOT_OF_PIPELINE = _ONLY_HOW | {"deploy_timeout_s", "serve"}


def run_pipeline(settings: PipelineSettings) -> dict[str, Any]:
    """Run the pipeline. Ray must be running.

    Returns:
        The run's id, the model's URI and version, whether and why it was promoted, metrics on the
        test split, the service's address and version, and seconds of each stage not skipped.

    Raises:
        PipelineError: a stage failed; the message names it.
    """
    key = settings.model_dump(mode="json", exclude=_NOT_OF_PIPELINE)
    outcome = run_stages(_Stages(settings).wanted(), settings.experiment, key)
    results = outcome.results
    promoted, deployed = results.get("promote", {}), results.get("deploy", {})
    return {
        "run_id": outcome.run_id,
        "model_uri": results["train"]["model_uri"],
        "model_version": results["train"]["model_version"],
        "promoted": promoted.get("promoted", False),
        "promotion_reason": promoted.get("reason", "promote is off"),
        "test": results["train"]["test"],
        "url": deployed.get("url"),
        "served_version": deployed.get("version"),
        "seconds": outcome.seconds,
    }


def stay_while_serving() -> None:
    """Wait for Ctrl-C if the service runs in this process's own Ray, which ends with it."""
    if started_ray() and service.is_running():
        # Not on standard output: its last line is the result.
        print("serving until Ctrl-C: this command started Ray for itself", file=stderr())
        with suppress(KeyboardInterrupt):
            signal.pause()


class _Stages:
    """Inputs and work of each stage, for some settings."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._name = settings.register_as
        self._deploys = settings.promote and settings.deploy
        self._url = ""
        if self._deploys:
            self._url = settings.url or live_service.address(settings.serve_config)

    def wanted(self) -> list[Stage]:
        """Return the stages that the settings ask for, in order."""
        stages = [
            Stage("fetch", self._fetch_inputs, in_own_run(self._fetch), _sources_exist),
            Stage("inspect", self._inspect_inputs, in_own_run(self._inspect)),
            Stage("train", self._train_inputs, self._train, self._is_registered),
            Stage("evaluate", self._evaluate_inputs, in_own_run(self._evaluate)),
        ]
        if self._settings.promote:
            stages.append(Stage("promote", self._promote_inputs, in_own_run(self._promote)))
        if self._deploys:
            stages += [
                Stage("deploy", self._deploy_inputs, in_own_run(self._deploy), self._is_served),
                Stage("smoke-test", self._smoke_inputs, in_own_run(self._smoke_test)),
            ]
        return stages

    def _fetch_inputs(self, results: Results) -> Result:
        both = (self._settings.data, self._settings.test_data)
        present = [source for source in both if source is not None]
        return {"sources": present, "fingerprint": [fingerprint.of_source(s) for s in present]}

    def _fetch(self, results: Results, run: tracking.Run) -> Result:
        test_data = self._settings.test_data
        local = {
            "data": sources.check(self._settings.data),
            "test_data": None if test_data is None else sources.check(test_data),
        }
        return self._fetch_inputs(results) | local

    def _data_settings(self, results: Results) -> dict[str, Any]:
        own = self._settings.model_dump(mode="json", include=set(DataSettings.model_fields))
        given = self._settings.data, self._settings.test_data
        fetched = {key: results["fetch"][key] for key in ("data", "test_data")}
        # What was stored with the run has no secrets.
        return own | {
            key: None if text is None else Uri(text).with_secrets_of(*given)
            for key, text in fetched.items()
        }

    def _inspect_inputs(self, results: Results) -> Result:
        size = {"image_size": self._settings.image_size}
        return results["fetch"] | self._data_settings(results) | size

    def _inspect(self, results: Results, run: tracking.Run) -> Result:
        settings = DataSettings(**self._data_settings(results))
        findings = inspect(
            settings,
            self._settings.backbone_weights,
            self._settings.alpha,
            self._settings.image_size,
        )
        run.log_text(html(settings.data, findings), "inspection.html")
        run.log_json(as_json(findings), "inspection.json")
        run.log_metrics(evaluation.flatten(_only_numbers(findings.figures)))
        names = "num_images", "num_unreadable", "num_near_groups", "num_groups_under_two_labels"
        say(", ".join(f"{name} {findings.figures[name]}" for name in names))
        return {name: findings.figures[name] for name in names}

    def _train_settings(self, results: Results) -> dict[str, Any]:
        own = self._settings.model_dump(mode="json", include=set(RunSettings.model_fields))
        return own | self._data_settings(results) | {"promote": False, "data_report": False}

    def _train_inputs(self, results: Results) -> Result:
        settings = self._train_settings(results)
        kept = {key: value for key, value in settings.items() if key not in _NOT_OF_TRAINING}
        return kept | _fingerprint(results)

    def _train(self, results: Results, attempt: Attempt) -> Result:
        settings = self._train_settings(results) | {"resume": attempt.resume}
        return train_model(TrainSettings(**settings), attempt.tags)

    def _is_registered(self, result: Result) -> bool:
        return tracking.RegisteredModel(self._name).has_version(result["model_version"])

    def _evaluate_inputs(self, results: Results) -> Result:
        return self._data_settings(results) | self._robustness | _trained_model(results)

    @property
    def _robustness(self) -> dict[str, Any]:
        return self._settings.model_dump(include=set(ReportSettings.model_fields))

    def _evaluate(self, results: Results, run: tracking.Run) -> Result:
        uri = results["train"]["model_uri"]
        settings = EvaluateSettings(
            **self._data_settings(results), **self._robustness, model_uri=uri
        )
        report, _ = evaluate(settings)
        run.log_text(report.html, evaluation.HTML_FILE)
        run.log_json(report.figures, evaluation.JSON_FILE)
        run.log_metrics(evaluation.flatten(report.metrics, "test_"))
        return report.metrics

    def _promote_inputs(self, results: Results) -> Result:
        rule = self._settings.model_dump(include=set(PromotionRule.model_fields))
        return self._data_settings(results) | rule | _trained_model(results)

    def _promote(self, results: Results, run: tracking.Run) -> Result:
        settings = DataSettings(**self._data_settings(results))
        images = grounds.load_held_out(settings, self._settings.image_size)
        version = results["train"]["model_version"]
        decision = promotion.promote_if_better(self._name, version, images, self._settings)
        for role, figures in (("challenger", decision.challenger), ("champion", decision.champion)):
            if figures is not None:
                run.log_metrics({f"{role}_{key}": v for key, v in _flat_figures(figures).items()})
        return asdict(decision)

    def _champion(self, results: Results) -> str:
        """Return the version to serve: the new one if it was promoted, else the older champion.

        Raises:
            PipelineError: there is no champion.
        """
        version = tracking.aliases(self._name).get(CHAMPION)
        if version is None:
            raise PipelineError(
                f"{self._name} has no champion to serve, since version "
                f"{results['train']['model_version']} was not promoted: "
                f"{results['promote']['reason']}"
            )
        return version

    def _deploy_inputs(self, results: Results) -> Result:
        return {"name": self._name, "version": self._champion(results), "url": self._url}

    def _deploy(self, results: Results, run: tracking.Run) -> Result:
        settings, target = self._settings, self._deploy_inputs(results)
        if live_service.health(self._url) is None:
            if not settings.serve:
                raise PipelineError(
                    f"nothing answers at {self._url}; start it with `serve run "
                    f"{settings.serve_config}`, or pass --serve to have the pipeline do it"
                )
            say(f"serving at {self._url}")
            service.start(settings.serve_config, f"models:/{self._name}@{CHAMPION}")
        live_service.await_version(
            self._url, self._name, target["version"], settings.deploy_timeout_s
        )
        # The time makes a later service another one: answers of an ended service do not count.
        return target | {"deployed": datetime.now(UTC).isoformat()}

    def _is_served(self, result: Result) -> bool:
        return live_service.serves(result["url"], result["name"], result["version"])

    def _smoke_inputs(self, results: Results) -> Result:
        return results["deploy"] | self._data_settings(results)

    def _smoke_test(self, results: Results, run: tracking.Run) -> Result:
        version = results["deploy"]["version"]
        path = tracking.resolve_model(f"models:/{self._name}/{version}").path
        predictor = Predictor(path)
        settings = DataSettings(**self._data_settings(results))
        images = _test_images(settings, predictor.image_size, self._settings.smoke_images)
        checked = live_service.check_answers(
            self._url, (self._name, version), images, predictor, settings
        )
        say(f"{self._url} answers with version {version}: {checked}")
        run.log_metrics(checked)
        return checked


def _sources_exist(result: Result) -> bool:
    present = [result[key] for key in ("data", "test_data") if result[key] is not None]
    return all(sources.is_there(source) for source in present)


def _trained_model(results: Results) -> Result:
    model = {key: results["train"][key] for key in ("model_uri", "run_id")}
    return model | _fingerprint(results)


def _fingerprint(results: Results) -> Result:
    """Return what changes when the images change."""
    return {"fingerprint": results["fetch"]["fingerprint"]}


def _only_numbers(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _flat_figures(figures: Figures) -> dict[str, float]:
    values = {key: value for key, value in asdict(figures).items() if key != "version"}
    return evaluation.flatten(values)


def _test_images(
    settings: DataSettings, image_size: int, num_images: int
) -> list[live_service.LabelledImage]:
    """Return the first images of the test split that can be decoded, as encoded files."""
    images = data.load(settings, image_size, needed=())
    rows = images.decoded(("test",)).select_columns(
        ["path", "label", "split", "error"], **data.task_options(images.task_cpus)
    )
    chosen: list[live_service.LabelledImage] = []
    for row in rows.iter_rows():
        if row["split"] == "test" and not row["error"]:
            path, class_name = str(row["path"]), images.class_names[row["label"]]
            chosen.append(
                live_service.LabelledImage(path, _read_encoded(path, settings), class_name)
            )
        if len(chosen) == num_images:
            break
    return chosen


def _read_encoded(path: str, settings: DataSettings) -> bytes:
    if sources.is_synthetic(settings.test_data or settings.data):
        encoded, _ = synthetic.encode(int(Path(path).stem), seed=settings.seed)
        return encoded
    return sources.read_file(path)
