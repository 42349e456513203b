"""Whose output a driver prints, of what Ray forwards to it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from mask_ray.ray_internals import on_worker_output

OWN, OTHER = "04000000", "03000000"


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    context = SimpleNamespace(get_job_id=lambda: OWN)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    yield
    dispatcher.remove_handler("mask_ray")


def lines_of(jobs: list[str | None]) -> list[dict[str, Any]]:
    return [{"lines": [f"of {job}"], "job": job, "pid": 1} for job in jobs]


def test_other_jobs_are_left_out_once_ray_forwards_them_too() -> None:
    got: list[dict[str, Any]] = []
    on_worker_output(got.append)
    for batch in lines_of([OTHER, OWN, None, ""]):
        dispatcher.emit(batch)
    assert [batch["job"] for batch in got] == [OWN, None, ""]


def test_a_handler_replaces_the_one_before() -> None:
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []
    on_worker_output(first.append)
    on_worker_output(second.append, of_all_jobs=True)
    for batch in lines_of([OTHER, OWN]):
        dispatcher.emit(batch)
    assert first == []
    assert [batch["job"] for batch in second] == [OTHER, OWN]
