"""An alias moves while a real Ray Serve answers over real HTTP."""

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from mlflow import MlflowClient
from ray import serve

from mask_ray import tracking
from mask_ray.config import ImageLimits
from mask_ray.evaluation import promotion
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from mask_ray.processes import free_port
from mask_ray.serving.deployment import ApplicationError, build_app
from mask_ray.serving.versions.challenger import takes_part
from mask_ray.tracking import start_run
from tests.support import image_files
from tests.support.mlflow_models import NAME, register
from tests.support.onnx_files import CLASS_NAMES, write_classifier
from tests.support.polling import wait_until
from tests.support.replicas import all_are_running, in_replicas, replicas

APP = "faces"
POLL_S = 0.3
IMAGES = [image_files.png(image_files.picture(seed=seed)) for seed in range(12)]

# Versions 1 and 2 answer differently, and 2 takes images of another size; the rest are no good.
GOOD = {"1": (32, 1), "2": (48, 2)}
NAN, OTHER_CLASSES = "3", "4"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of each version."""
    folder = tmp_path_factory.mktemp("versions")
    written = {
        version: write_classifier(folder / f"{version}.onnx", image_size=image_size, seed=seed)
        for version, (image_size, seed) in GOOD.items()
    }
    written[NAN] = write_classifier(folder / "nan.onnx", scale=float("nan"))
    written[OTHER_CLASSES] = write_classifier(folder / "cats.onnx", class_names=("cat", "dog"))
    return written


@pytest.fixture
def home(module_home: Path) -> Path:
    return module_home


@pytest.fixture(scope="module")
def ray_environment(module_home: Path) -> dict[str, str]:
    """Replicas look for models in the module's store."""
    return {"MASK_RAY_HOME": str(module_home)}


@pytest.fixture(scope="module")
def client(
    cluster: dict[str, str], files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("registered")
    with start_run("faces", {}) as run:
        for version, path in files.items():
            size = Predictor(path).image_size
            example = np.zeros((1, size, size, 3), np.uint8)
            assert register(run, folder, path, example=example) == version
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    serve.shutdown()


def move(version: str, alias: str = "champion") -> None:
    MlflowClient().set_registered_model_alias(NAME, alias, version)


def run_app(**settings: Any) -> None:
    args = {"model_uri": f"models:/{NAME}@champion", "model_poll_s": POLL_S} | settings
    # Two of them make the trial of a version.
    args |= {"health_check_period_s": 1}
    serve.run(build_app(args), name=APP, route_prefix="/")
    # Those of the application before it are gone too.
    wait_until(lambda: all_are_running(APP))


def recording_differences() -> Callable[[Any], None]:
    """For `in_replicas`: keep the difference of each comparison that the metrics are told of."""

    def record(classifier: Any) -> None:
        classifier.differences = []
        tell = classifier.metrics.compared

        def compared(comparison: Any) -> None:
            classifier.differences.append(comparison.difference)
            tell(comparison)

        classifier.metrics.compared = compared

    return record


def nums_of_models() -> list[int]:
    """How many models each replica has in memory."""

    def count(_: Any) -> int:
        gc.collect()
        return sum(isinstance(known, Predictor) for known in gc.get_objects())

    return in_replicas(count, APP)


def watches() -> list[dict[str, str]]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor for actor in named if actor["namespace"] == "mask_ray"]


def no_version_is_on_trial() -> bool:
    """Whether what one replica tries first, if any, is what all of them serve."""
    actors: list[Any] = [ray.get_actor(**watch) for watch in watches()]
    is_free = lambda actor: actor._versions._rollout._trial is None  # noqa: E731
    return all(ray.get([actor.__ray_call__.remote(is_free) for actor in actors]))


@pytest.fixture(scope="module")
def expected(files: dict[str, Path]) -> dict[tuple[str, int], dict[str, float]]:
    """By version and image, the answer without any server."""
    answers = {}
    for version in GOOD:
        predictor = Predictor(files[version])
        for index, encoded in enumerate(IMAGES):
            image = decode_resized(encoded, predictor.image_size, ImageLimits())
            (probabilities,) = predictor.predict(image[None])
            named = zip(CLASS_NAMES, map(float, probabilities), strict=True)
            answers[version, index] = dict(named)
    return answers


@dataclass(frozen=True)
class Asked:
    """One request and what came of it; times are monotonic seconds."""

    image: int
    sent_s: float
    answered_s: float
    response: httpx.Response

    @property
    def version(self) -> str:
        return str(self.response.json()["model"]["version"])


@dataclass
class Load:
    """Threads that ask again and again, and leave some of the cores to those that load models."""

    client: httpx.Client
    asked: list[Asked] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(6)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, start: int) -> None:
        index = start
        while not self.stopped.is_set():
            index = (index + 1) % len(IMAGES)
            sent_s = time.monotonic()
            response = self.client.post("/predict", content=IMAGES[index])
            self.asked.append(Asked(index, sent_s, time.monotonic(), response))
            time.sleep(0.05)

    def settle(self, version: str) -> float:
        """Wait until no other version answers, neither of the replicas'; when that was so."""
        start = len(self.asked)

        def is_alone() -> bool:
            recent = self.asked[start:][-100:]
            return len(recent) == 100 and {asked.version for asked in recent} == {version}

        wait_until(is_alone, f"version {version} alone to answer")
        return time.monotonic()


def refused(client: httpx.Client) -> dict[str, str]:
    return {r["version"]: r["reason"] for r in client.get("/healthz").json()["refused"]}


def test_under_load_every_answer_is_of_a_champion_and_none_is_lost(
    client: httpx.Client, expected: dict[tuple[str, int], dict[str, float]]
) -> None:
    move("1")
    run_app(min_replicas=2)
    # When each version became champion, and from when on it alone answered.
    moves: list[tuple[str, float, float]] = []

    with Load(client) as load:
        moves.append(("1", 0, load.settle("1")))
        moved_s = time.monotonic()
        move("2")
        moves.append(("2", moved_s, load.settle("2")))
        for bad, reason in ((NAN, "must be finite"), (OTHER_CLASSES, "class_names")):
            move(bad)
            wait_until(lambda bad=bad: bad in refused(client))  # type: ignore[misc]
            assert reason in refused(client)[bad]
        moved_s = time.monotonic()
        move("1")
        moves.append(("1", moved_s, load.settle("1")))

    assert {asked.response.status_code for asked in load.asked} == {200}
    # A hundred for each time that one version alone answered.
    assert len(load.asked) >= 300
    for asked in load.asked:
        probabilities = asked.response.json()["probabilities"]
        assert probabilities == pytest.approx(expected[asked.version, asked.image], abs=1e-5)
        assert asked.version in champions(moves, asked)
    wait_until(lambda: refused(client) == {})
    # One may be remembered by the last batch it was in.
    assert max(nums_of_models()) <= 2


def champions(moves: list[tuple[str, float, float]], asked: Asked) -> set[str]:
    """Versions that a request may be answered by: the champion, or until all follow the last."""
    return {
        version
        for (version, moved_s, _), settled_s in zip(
            moves, [s for _, _, s in moves[1:]] + [float("inf")], strict=True
        )
        if moved_s <= asked.answered_s and asked.sent_s <= settled_s
    }


def test_a_replica_that_starts_late_serves_what_the_others_have(client: httpx.Client) -> None:
    move("1")
    run_app(max_replicas=1)
    move("2")
    wait_until(lambda: ask(client)["model"]["version"] == "2")
    # Replicas of the test before count for a while as others of the same service.
    wait_until(no_version_is_on_trial)
    move(NAN)
    wait_until(lambda: NAN in refused(client))
    (old,) = replicas(APP)
    ray.kill(old)

    wait_until(lambda: len(replicas(APP)) == 1 and replicas(APP) != [old])
    wait_until(lambda: client.get("/healthz").status_code == 200)

    assert ask(client)["model"]["version"] == "2"
    assert "mlflow" not in in_replicas(lambda _: set(sys.modules), APP)[0]


def ask(client: httpx.Client, encoded: bytes = IMAGES[0]) -> Any:
    return client.post("/predict", content=encoded).json()


@pytest.mark.parametrize("mode", ["canary", "shadow"])
def test_a_share_of_images_goes_to_the_challenger(
    client: httpx.Client, expected: dict[tuple[str, int], dict[str, float]], mode: str
) -> None:
    move("1")
    move("2", alias="challenger")
    run_app(max_replicas=1, challenger_share=0.5, challenger_mode=mode)
    wait_until(lambda: client.get("/healthz").json()["challenger"] is not None)
    in_replicas(recording_differences(), APP)
    chosen = [takes_part(encoded, 0.5) for encoded in IMAGES]
    assert 0 < sum(chosen) < len(IMAGES)

    for index, encoded in enumerate(IMAGES):
        version = "2" if chosen[index] and mode == "canary" else "1"
        answer = ask(client, encoded)
        assert answer["model"]["version"] == version
        assert answer["probabilities"] == pytest.approx(expected[version, index], abs=1e-5)

    wait_until(lambda: len(in_replicas(lambda c: c.differences, APP)[0]) == sum(chosen))
    difference = np.mean(in_replicas(lambda c: c.differences, APP)[0])
    assert difference == pytest.approx(
        np.mean(
            [
                max(abs(expected["1", i][c] - expected["2", i][c]) for c in CLASS_NAMES)
                for i in range(len(IMAGES))
                if chosen[i]
            ]
        ),
        abs=1e-4,
    )


def test_a_first_version_that_is_no_good_gives_way_to_the_champion_before_it(
    client: httpx.Client,
) -> None:
    promotion.force_promotion(NAME, "1")
    move(NAN)
    run_app(max_replicas=1)
    assert ask(client)["model"]["version"] == "1"
    assert "must be finite" in refused(client)[NAN]

    with pytest.raises(ApplicationError, match="is rejected: a smoke prediction must be finite"):
        build_app({"model_uri": f"models:/{NAME}/{NAN}"})


def test_the_actor_that_reads_the_registry_is_made_again_and_ends_when_nobody_asks(
    client: httpx.Client,
) -> None:
    move("1")
    run_app(max_replicas=1)
    tracking.keep_refusal(NAME, "2", "it was slow")
    for watch in watches():
        ray.kill(ray.get_actor(**watch))
    move("2")
    wait_until(lambda: "2" in refused(client))
    assert ask(client)["model"]["version"] == "1"
    # Moved to on purpose, it is tried again.
    promotion.force_promotion(NAME, "2")
    wait_until(lambda: ask(client)["model"]["version"] == "2")

    serve.delete(APP)
    for watch in watches():
        # As if minutes had passed.
        make_idle: Any = ray.get_actor(**watch).__ray_call__.remote(
            lambda actor: setattr(actor, "_asked_at", float("-inf"))
        )
        ray.wait([make_idle])
    wait_until(lambda: watches() == [])
