"""Compares champion and challenger on a share of the images.

The bytes of an image decide whether it belongs to the share, so the decision is the same in every
replica. One thread makes the comparisons, after the answer is sent. Images that it cannot keep up
with are skipped and counted.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mask_ray.images.decode import RGBArray
from mask_ray.serving.memory import NeverFitsError, OverBudgetError
from mask_ray.serving.versions.events import Comparison, ModelEvents
from mask_ray.serving.versions.follower import LoadedModel, Serving

# Each pending comparison keeps an encoded image in memory.
MAX_PENDING = 8

logger = logging.getLogger(__name__)


def takes_part(encoded: bytes, share: float) -> bool:
    """Whether an image belongs to the share, in 0..1, of all images."""
    if share <= 0:
        return False
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def compare(
    serving: Serving,
    answered: LoadedModel,
    probabilities: Mapping[str, float],
    encoded: bytes,
    decode: Callable[[bytes, int], RGBArray],
) -> Comparison:
    """Classify an image with the other model too, and compare the answers.

    A class that a model does not have has the probability 0.

    Args:
        serving: Champion and challenger.
        answered: The one whose answer is known.
        probabilities: Its answer, by class.
        encoded: The image.
        decode: Decodes an image to a square of this side.
    """
    assert serving.challenger is not None, "there is something to compare with"
    champion, challenger = (
        probabilities if model is answered else _classify(model, encoded, decode)
        for model in (serving.champion, serving.challenger)
    )
    names = champion.keys() | challenger.keys()
    return Comparison(
        champion=str(serving.champion.version),
        challenger=str(serving.challenger.version),
        agrees=_most_likely(champion) == _most_likely(challenger),
        difference=max(abs(champion.get(name, 0) - challenger.get(name, 0)) for name in names),
    )


def _classify(
    model: LoadedModel, encoded: bytes, decode: Callable[[bytes, int], RGBArray]
) -> Mapping[str, float]:
    predictor = model.predictor
    image = decode(encoded, predictor.image_size)
    (probabilities,) = predictor.predict(image[None])
    return dict(zip(predictor.class_names, map(float, probabilities), strict=True))


def _most_likely(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


class Comparer:
    """Makes comparisons one after the other in its own thread.

    Args:
        events: Receives the comparisons.
        max_pending: Most comparisons that wait or run; more are skipped.
    """

    def __init__(self, events: ModelEvents, max_pending: int = MAX_PENDING) -> None:
        self._events = events
        self._places = threading.Semaphore(max_pending)
        self._thread = ThreadPoolExecutor(1, "compare")

    def offer(self, comparison: Callable[[], Comparison]) -> bool:
        """Run a comparison soon, or skip it if too many wait. Returns at once, raises nothing.

        Returns whether it will run.
        """
        if self._places.acquire(blocking=False):
            self._thread.submit(self._run, comparison)
            return True
        self._events.not_compared("busy")
        return False

    def close(self) -> None:
        """Wait for the accepted comparisons."""
        self._thread.shutdown()

    def _run(self, comparison: Callable[[], Comparison]) -> None:
        try:
            self._events.compared(comparison())
        except (OverBudgetError, NeverFitsError):
            # Requests come first; a line for each image would fill the log of a busy replica.
            self._events.not_compared("busy")
        except Exception as error:
            logger.warning("a comparison with the challenger failed: %s", error)
            self._events.not_compared("failed")
        finally:
            self._places.release()
