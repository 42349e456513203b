"""A share of the images also goes to another version, and the two answers are compared.

Which images is decided by their bytes, so the same image always goes the same way, whichever
replica it meets. The comparison is made after the answer is sent, on one thread; what it cannot
keep up with is left out and counted.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mask_ray.config import ImageLimits
from mask_ray.images.decode import decode_resized
from mask_ray.serving.versions.events import Comparison, ModelEvents
from mask_ray.serving.versions.follower import LoadedModel, Serving

# Each holds an encoded image until its turn.
MAX_PENDING = 8

logger = logging.getLogger(__name__)


def takes_part(encoded: bytes, share: float) -> bool:
    """Whether an image belongs to a share, in 0..1, of all."""
    if share <= 0:
        return False
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def compare(
    serving: Serving,
    answered: LoadedModel,
    probabilities: Mapping[str, float],
    encoded: bytes,
    limits: ImageLimits,
) -> Comparison:
    """Have the other model classify an image too, here and now.

    A class that only one of the models has counts as one of probability 0 for the other.

    Args:
        serving: Champion and challenger.
        answered: The one of them whose answer there is.
        probabilities: Its answer, by class.
        encoded: The image.
        limits: Of the decoder.
    """
    assert serving.challenger is not None, "there is something to compare with"
    champion, challenger = (
        probabilities if model is answered else _ask(model, encoded, limits)
        for model in (serving.champion, serving.challenger)
    )
    names = champion.keys() | challenger.keys()
    return Comparison(
        champion=str(serving.champion.version),
        challenger=str(serving.challenger.version),
        agrees=_likeliest(champion) == _likeliest(challenger),
        difference=max(abs(champion.get(name, 0) - challenger.get(name, 0)) for name in names),
    )


def _ask(model: LoadedModel, encoded: bytes, limits: ImageLimits) -> Mapping[str, float]:
    predictor = model.predictor
    image = decode_resized(encoded, predictor.image_size, limits)
    (probabilities,) = predictor.predict(image[None])
    return dict(zip(predictor.class_names, map(float, probabilities), strict=True))


def _likeliest(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


class Comparer:
    """Makes comparisons one after the other, and never makes anyone wait for one.

    Args:
        events: Who is told of them.
        max_pending: Comparisons waiting or running; more are left out.
    """

    def __init__(self, events: ModelEvents, max_pending: int = MAX_PENDING) -> None:
        self._events = events
        self._places = threading.Semaphore(max_pending)
        self._thread = ThreadPoolExecutor(1, "compare")

    def offer(self, comparison: Callable[[], Comparison]) -> None:
        """Run this soon, unless there is too much to do. Returns at once and raises nothing."""
        if self._places.acquire(blocking=False):
            self._thread.submit(self._run, comparison)
        else:
            self._events.not_compared("busy")

    def close(self) -> None:
        """Wait for the comparisons that were accepted."""
        self._thread.shutdown()

    def _run(self, comparison: Callable[[], Comparison]) -> None:
        try:
            self._events.compared(comparison())
        except Exception as error:
            logger.warning("a comparison with the challenger failed: %s", error)
            self._events.not_compared("failed")
        finally:
            self._places.release()
