"""Which images a challenger gets, and what is made of its answers."""

import threading
from functools import partial
from pathlib import Path

import pytest

from mask_ray.config import ImageLimits
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from mask_ray.serving.memory import NeverFitsError, OverBudgetError
from mask_ray.serving.versions.challenger import Comparer, compare, takes_part
from mask_ray.serving.versions.events import Comparison
from mask_ray.serving.versions.follower import LoadedModel, Serving
from tests.support import image_files
from tests.support.event_counts import ModelEventCounts
from tests.support.onnx_files import write_classifier

COMPARISON = Comparison("1", "2", agrees=True, difference=0.25)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    chosen = sum(takes_part(str(number).encode(), share) for number in range(10_000))

    assert chosen / 10_000 == pytest.approx(share, abs=0.02)


def test_an_image_always_goes_the_same_way_and_stays_as_the_share_grows() -> None:
    images = [str(number).encode() for number in range(1000)]
    few = {image for image in images if takes_part(image, 0.2)}

    assert few == {image for image in images if takes_part(image, 0.2)}
    assert few < {image for image in images if takes_part(image, 0.4)}


def model(path: Path, version: str, class_names: tuple[str, ...], seed: int) -> LoadedModel:
    size = 32 if version == "1" else 48
    file = write_classifier(path / f"{version}.onnx", class_names, image_size=size, seed=seed)
    return LoadedModel("faces", version, Predictor(file))


def answer(of: LoadedModel, encoded: bytes) -> dict[str, float]:
    image = decode_resized(encoded, of.predictor.image_size, ImageLimits())
    (probabilities,) = of.predictor.predict(image[None])
    return dict(zip(of.predictor.class_names, map(float, probabilities), strict=True))


@pytest.mark.parametrize("answered", ["champion", "challenger"])
def test_both_answers_are_compared_whichever_was_sent(tmp_path: Path, answered: str) -> None:
    names = ("a", "b")
    serving = Serving(model(tmp_path, "1", names, seed=1), model(tmp_path, "2", names, seed=2))
    assert serving.challenger is not None
    encoded = image_files.png()
    sent = serving.champion if answered == "champion" else serving.challenger

    compared = compare(serving, sent, answer(sent, encoded), encoded, decode_resized)

    first, second = answer(serving.champion, encoded), answer(serving.challenger, encoded)
    assert (compared.champion, compared.challenger) == ("1", "2")
    assert compared.difference == pytest.approx(abs(first["a"] - second["a"]))
    assert compared.agrees == ((first["a"] > first["b"]) == (second["a"] > second["b"]))


def test_a_class_that_one_lacks_has_no_probability_there(tmp_path: Path) -> None:
    serving = Serving(
        model(tmp_path, "1", ("a", "b"), seed=1), model(tmp_path, "2", ("c", "d"), seed=2)
    )
    encoded = image_files.png()
    sent = answer(serving.champion, encoded)

    compared = compare(serving, serving.champion, sent, encoded, decode_resized)

    assert not compared.agrees
    assert compared.difference >= max(sent.values())


def test_comparisons_are_counted() -> None:
    events = ModelEventCounts()
    comparer = Comparer(events)
    for agrees, difference in ((True, 0.1), (False, 0.5)):
        comparer.offer(partial(Comparison, "1", "2", agrees, difference))
    comparer.close()

    assert events.counts() == {"compared": 2, "agreed": 1}
    assert events.mean_difference() == pytest.approx(0.3)


def test_what_fails_is_counted_and_the_next_is_compared() -> None:
    def fail() -> Comparison:
        raise RuntimeError("bad model")

    events = ModelEventCounts()
    comparer = Comparer(events)
    for comparison in (fail, lambda: COMPARISON):
        comparer.offer(comparison)
    comparer.close()

    assert events.counts() == {"not_compared_failed": 1, "compared": 1, "agreed": 1}


@pytest.mark.parametrize("error", [OverBudgetError, NeverFitsError])
def test_what_finds_no_room_is_skipped_without_a_warning(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Comparison:
        raise error("full")

    events = ModelEventCounts()
    comparer = Comparer(events)
    comparer.offer(fail)
    comparer.close()

    assert events.counts() == {"not_compared_busy": 1}
    assert not caplog.records


def test_nobody_waits_while_there_is_too_much_to_do() -> None:
    going = threading.Event()

    def slow() -> Comparison:
        going.wait(30)
        return COMPARISON

    events = ModelEventCounts()
    comparer = Comparer(events, max_pending=3)
    for _ in range(10):
        comparer.offer(slow)

    assert events.counts() == {"not_compared_busy": 7}
    going.set()
    comparer.close()
    assert events.counts()["compared"] == 3
