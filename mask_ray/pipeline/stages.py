"""The stages of the line: fetch, inspect, train, evaluate, promote, deploy, smoke-test."""

import signal
import sys
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
    changeable_fields,
)
from mask_ray.data import sources
from mask_ray.data.sources import fingerprint
from mask_ray.evaluation import promotion
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
from mask_ray.progress import say
from mask_ray.ray_internals import started_ray
from mask_ray.serving import deployment
from mask_ray.training.run import train_model

_RULE = set(PromotionRule.model_fields)
# How a run is done, not what it makes: given anew, it is the same training, the same pipeline.
_ONLY_HOW = changeable_fields(TrainSettings) - {"quantize", "register_as", "promote"} - _RULE
_NOT_OF_TRAINING = _ONLY_HOW | _RULE | {"experiment", "promote"}
_NOT_OF_PIPELINE = _ONLY_HOW | {"deploy_timeout_s", "serve"}


def run_pipeline(settings: PipelineSettings) -> dict[str, Any]:
    """Run the pipeline. Ray must be running.

    Returns:
        The run's id, the model's URI and version, whether and why it is the champion, metrics of
        the test split, the service's address and version, and seconds of each stage done.

    Raises:
        PipelineError: a stage failed; the message names it.
    """
    key = settings.model_dump(mode="json", exclude=_NOT_OF_PIPELINE)
    done = run_stages(_Line(settings).stages(), settings.experiment, key)
    results = done.results
    promoted, deployed = results.get("promote", {}), results.get("deploy", {})
    return {
        "run_id": done.run_id,
        "model_uri": results["train"]["model_uri"],
        "model_version": results["train"]["model_version"],
        "promoted": promoted.get("promoted", False),
        "promotion_reason": promoted.get("reason", "promote is off"),
        "test": results["train"]["test"],
        "url": deployed.get("url"),
        "served_version": deployed.get("version"),
        "seconds": done.seconds,
    }


def stay_while_serving() -> None:
    """Wait for Ctrl-C where this process's own Ray holds the service, which would end with it."""
    if started_ray() and deployment.is_running():
        # Not on standard output, whose last line is the result.
        print("serving until Ctrl-C: this command started Ray for itself", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            signal.pause()


class _Line:
    """The stages for some settings."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._name = settings.register_as
        self._deploys = settings.promote and settings.deploy
        self._url = ""
        if self._deploys:
            self._url = settings.url or live_service.address(settings.serve_config)

    def stages(self) -> list[Stage]:
        """All that are wanted, in order."""
        stages = [
            Stage("fetch", self._fetch_inputs, in_own_run(self._fetch), _is_there),
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
        given = [s for s in (self._settings.data, self._settings.test_data) if s is not None]
        return {"sources": given, "fingerprint": [fingerprint.of_source(s) for s in given]}

    def _fetch(self, results: Results, run: tracking.Run) -> Result:
        test_data = self._settings.test_data
        local = {
            "data": sources.check(self._settings.data),
            "test_data": None if test_data is None else sources.check(test_data),
        }
        return self._fetch_inputs(results) | local

    def _data_settings(self, results: Results) -> dict[str, Any]:
        own = self._settings.model_dump(mode="json", include=set(DataSettings.model_fields))
        return own | {key: results["fetch"][key] for key in ("data", "test_data")}

    def _inspect_inputs(self, results: Results) -> Result:
        return results["fetch"] | self._data_settings(results)

    def _inspect(self, results: Results, run: tracking.Run) -> Result:
        settings = DataSettings(**self._data_settings(results))
        findings = inspect(settings, self._settings.backbone_weights)
        run.log_text(html(settings.data, findings), "inspection.html")
        run.log_json(as_json(findings), "inspection.json")
        run.log_metrics(evaluation.flatten(_only_numbers(findings.figures)))
        told = "num_images", "num_unreadable", "num_near_groups", "num_groups_under_two_labels"
        say(", ".join(f"{name} {findings.figures[name]}" for name in told))
        return {name: findings.figures[name] for name in told}

    def _train_settings(self, results: Results) -> dict[str, Any]:
        own = self._settings.model_dump(mode="json", include=set(RunSettings.model_fields))
        return own | self._data_settings(results) | {"promote": False, "data_report": False}

    def _train_inputs(self, results: Results) -> Result:
        settings = self._train_settings(results)
        made_of = {key: value for key, value in settings.items() if key not in _NOT_OF_TRAINING}
        return made_of | _source(results)

    def _train(self, results: Results, attempt: Attempt) -> Result:
        settings = self._train_settings(results) | {"resume": attempt.cut_off}
        return train_model(TrainSettings(**settings), attempt.tags)

    def _is_registered(self, result: Result) -> bool:
        return tracking.RegisteredModel(self._name).has_version(result["model_version"])

    def _evaluate_inputs(self, results: Results) -> Result:
        return self._data_settings(results) | self._robustness | _made(results)

    @property
    def _robustness(self) -> dict[str, Any]:
        return self._settings.model_dump(include=set(ReportSettings.model_fields))

    def _evaluate(self, results: Results, run: tracking.Run) -> Result:
        uri = results["train"]["model_uri"]
        settings = EvaluateSettings(
            **self._data_settings(results), **self._robustness, model_uri=uri
        )
        made, _ = evaluate(settings)
        run.log_text(made.html, evaluation.HTML_FILE)
        run.log_json(made.figures, evaluation.JSON_FILE)
        run.log_metrics(evaluation.flatten(made.metrics, "test_"))
        return made.metrics

    def _promote_inputs(self, results: Results) -> Result:
        rule = self._settings.model_dump(include=set(PromotionRule.model_fields))
        return self._data_settings(results) | rule | _made(results)

    def _promote(self, results: Results, run: tracking.Run) -> Result:
        settings = DataSettings(**self._data_settings(results))
        images = promotion.held_out(settings, self._settings.image_size)
        version = results["train"]["model_version"]
        decision = promotion.run(self._name, version, images, self._settings)
        for who, figures in (("challenger", decision.challenger), ("champion", decision.champion)):
            if figures is not None:
                run.log_metrics({f"{who}_{key}": v for key, v in _numbers(figures).items()})
        return asdict(decision)

    def _champion(self, results: Results) -> str:
        """What is to be served: the new version, or where that was not promoted, the one before.

        Raises:
            PipelineError: there is none.
        """
        version = tracking.aliases(self._name).get(CHAMPION)
        if version is None:
            raise PipelineError(
                f"{self._name} has no champion to serve, since version "
                f"{results['train']['model_version']} is not promoted: "
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
                    f"nothing answers at {self._url}; start it by `serve run "
                    f"{settings.serve_config}`, or have the pipeline do it by --serve"
                )
            say(f"serving at {self._url}")
            deployment.start(settings.serve_config, f"models:/{self._name}@{CHAMPION}")
        live_service.await_version(
            self._url, self._name, target["version"], settings.deploy_timeout_s
        )
        # What was asked of one that ended since says nothing of this one.
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
        told = live_service.ask(self._url, (self._name, version), images, predictor, settings)
        say(f"{self._url} answers by version {version}: {told}")
        run.log_metrics(told)
        return told


def _is_there(result: Result) -> bool:
    given = [result[key] for key in ("data", "test_data") if result[key] is not None]
    return all(sources.is_there(source) for source in given)


def _made(results: Results) -> Result:
    made = {key: results["train"][key] for key in ("model_uri", "run_id")}
    return made | _source(results)


def _source(results: Results) -> Result:
    """What tells the images of one moment from those of another."""
    return {"fingerprint": results["fetch"]["fingerprint"]}


def _only_numbers(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _numbers(figures: promotion.Figures) -> dict[str, float]:
    told = {key: value for key, value in asdict(figures).items() if key != "version"}
    return evaluation.flatten(told)


def _test_images(
    settings: DataSettings, image_size: int, num_images: int
) -> list[live_service.LabelledImage]:
    """Some of the test split, as encoded files."""
    images = data.load(settings, image_size, needed=())
    rows = images.decoded(("test",)).select_columns(["path", "label", "split", "error"])
    found: list[live_service.LabelledImage] = []
    for row in rows.iter_rows():
        if row["split"] == "test" and not row["error"]:
            path, class_name = str(row["path"]), images.class_names[row["label"]]
            found.append(live_service.LabelledImage(path, _read(path, settings), class_name))
        if len(found) == num_images:
            break
    return found


def _read(path: str, settings: DataSettings) -> bytes:
    if sources.is_synthetic(settings.test_data or settings.data):
        encoded, _ = synthetic.encode(int(Path(path).stem), seed=settings.seed)
        return encoded
    return sources.read_file(path)
