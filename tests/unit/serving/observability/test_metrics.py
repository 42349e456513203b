"""What is recorded, under which names, and that the dashboard asks for nothing else."""

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from mask_ray.serving.observability import metrics
from mask_ray.serving.observability.exchanges import Exchange
from mask_ray.serving.versions.events import Comparison, Refusal

REPLICA = {"application": "app", "deployment": "Classifier", "replica": "r1"}
DASHBOARD = json.loads(
    files("mask_ray.serving.observability").joinpath("grafana/mask_ray.json").read_text()
)


class Recorder:
    """Stands in for a metric of Ray, and checks labels as it does."""

    made: dict[str, "Recorder"]

    def __init__(self, name: str, description: str, *rest: Any) -> None:
        assert description
        self.labels = rest[-1]
        self.records: list[tuple[float, dict[str, str]]] = []
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.defaults = tags

    def record(self, value: float = 1, tags: dict[str, str] | None = None) -> None:
        labels = self.defaults | (tags or {})
        assert set(labels) == set(self.labels)
        assert all(isinstance(label, str) and label for label in labels.values())
        self.records.append((value, tags or {}))

    inc = set = observe = record


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    monkeypatch.setattr(Recorder, "made", {}, raising=False)
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Recorder)
    return Recorder.made


@pytest.fixture
def replica(made: dict[str, Recorder]) -> metrics.Metrics:
    return metrics.Metrics(REPLICA)


def exchange(**changes: Any) -> Exchange:
    fields = {"started_at": 0.0, "request_id": "7", "method": "POST", "path": "/predict"}
    fields |= {"client": "", "forwarded_for": "", "endpoint": "/predict", "status": 200}
    return Exchange(**fields | changes)


def test_every_metric_has_the_labels_of_its_replica(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    assert made
    assert all(metric.defaults == REPLICA for metric in made.values())


def test_names_are_as_prometheus_has_them(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    """https://prometheus.io/docs/practices/naming/"""
    for name in made:
        assert re.fullmatch(r"mask_ray_[a-z]+(_[a-z]+)*", name)


def test_failed_logins_are_counted(replica: metrics.Metrics, made: dict[str, Recorder]) -> None:
    for reason in ("missing", "invalid", "invalid"):
        replica.observe(exchange(status=401, notes={"login": reason}))
    replica.observe(exchange(notes={"caller": "phone-app"}))
    replica.report()

    counted = made["mask_ray_failed_logins_total"].records
    assert sorted(counted, key=lambda record: record[0]) == [
        (1, {"reason": "missing"}),
        (2, {"reason": "invalid"}),
    ]


def test_a_request_is_counted_and_timed(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    replica.observe(exchange(status=429, duration_s=0.25))
    replica.report()

    labels = {"endpoint": "/predict", "method": "POST", "status": "429"}
    assert made["mask_ray_requests_total"].records == [(1, labels)]
    assert made["mask_ray_request_duration_seconds"].records == [(0.25, labels)]


def test_made_up_methods_are_one_label(replica: metrics.Metrics, made: dict[str, Recorder]) -> None:
    for method in ("GET", "BREW", "FROBNICATE"):
        replica.observe(exchange(method=method))

    replica.report()
    numbers = {labels["method"]: n for n, labels in made["mask_ray_requests_total"].records}
    assert numbers == {"GET": 1, "other": 2}


def test_what_was_reported_is_not_counted_again(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    replica.observe(exchange())
    replica.report()
    replica.report()
    assert [n for n, _ in made["mask_ray_requests_total"].records] == [1]


def test_an_answer_is_counted_by_class_and_version(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    replica.answered("with_mask", 0.9, "mask-detector", "3")
    replica.answered("uncertain", 0.5, "tiny", None)
    replica.report()

    first = {"label": "with_mask", "model": "mask-detector", "model_version": "3"}
    second = {"label": "uncertain", "model": "tiny", "model_version": "file"}
    assert made["mask_ray_predictions_total"].records == [(1, first), (1, second)]
    assert made["mask_ray_prediction_confidence"].records == [(0.9, first), (0.5, second)]


def test_one_model_at_a_time_serves(replica: metrics.Metrics, made: dict[str, Recorder]) -> None:
    for version in ("3", "4"):
        replica.serves("mask-detector", version)

    assert [
        (value, labels["model_version"]) for value, labels in made["mask_ray_model_info"].records
    ] == [(1, "3"), (0, "3"), (1, "4")]


def test_the_challenger_is_compared(replica: metrics.Metrics, made: dict[str, Recorder]) -> None:
    replica.compared(Comparison("3", "4", agrees=False, difference=0.25))
    replica.not_compared("busy")

    assert made["mask_ray_challenger_comparisons_total"].records == [
        (1, {"agrees": "false", "champion_version": "3", "challenger_version": "4"})
    ]
    assert made["mask_ray_challenger_difference"].records == [(0.25, {})]
    assert made["mask_ray_challenger_dropped_total"].records == [(1, {"reason": "busy"})]


def test_versions_that_take_over_or_are_refused_are_counted(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    replica.serves("mask-detector", "3")
    replica.switched("champion", "4")
    replica.switched("challenger", "5")
    replica.refused(Refusal("champion", "6", "its probabilities must be finite"))

    served = [
        (value, labels["model_version"]) for value, labels in made["mask_ray_model_info"].records
    ]
    assert served == [(1, "3"), (0, "3"), (1, "4")]
    assert made["mask_ray_model_switches_total"].records == [
        (1, {"alias": "champion"}),
        (1, {"alias": "challenger"}),
    ]
    assert made["mask_ray_model_refusals_total"].records == [(1, {"alias": "champion"})]


def test_stages_are_timed(replica: metrics.Metrics, made: dict[str, Recorder]) -> None:
    replica.decoded(0.002)
    replica.inferred(8, 0.04)
    replica.sample_dropped()

    assert made["mask_ray_decode_seconds"].records == [(0.002, {})]
    assert made["mask_ray_batch_size"].records == [(8, {})]
    assert made["mask_ray_inference_seconds"].records == [(0.04, {})]
    assert made["mask_ray_samples_dropped_total"].records == [(1, {})]


def test_rays_own_classes_take_what_is_recorded() -> None:
    replica = metrics.Metrics(REPLICA)
    replica.observe(exchange())
    replica.decoded(0.002)
    replica.inferred(8, 0.04)
    replica.answered("with_mask", 0.9, "mask-detector", "3")
    replica.serves("mask-detector", "3")
    replica.compared(Comparison("3", "4", agrees=True, difference=0.0))
    replica.not_compared("failed")
    replica.switched("champion", "4")
    replica.refused(Refusal("champion", "5", "why"))
    replica.sample_dropped()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    variables = DASHBOARD["templating"]["list"]
    return [target["expr"] for panel in panels() for target in panel["targets"]] + [
        variable["definition"] for variable in variables if variable["type"] == "query"
    ]


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    asked = {name for query in queries() for name in re.findall(r"\bray_\w+", query)}

    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} == {
        f"ray_{name}" for name in made
    }


def test_the_dashboard_filters_and_groups_by_labels_that_exist(
    replica: metrics.Metrics, made: dict[str, Recorder]
) -> None:
    known = {label for metric in made.values() for label in metric.labels} | {"le"}
    for query in queries():
        used = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
        used += re.split(r",\s*", ",".join(re.findall(r"by \(([^)]+)\)", query)) or "le")
        assert set(used) <= known, query


def test_the_dashboard_has_what_grafana_needs() -> None:
    """https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert {"type", "title", "gridPos", "targets", "fieldConfig", "options"} <= set(panel)
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def test_the_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
