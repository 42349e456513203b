"""Judge whether a version should take the champion's place: on whose images, and why.

The images are the given ones, the test split of the champion's run, and the reference set of the
registered model. An image that one of the two versions was trained or validated on does not count.
"""

import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import pyarrow as pa

from mask_ray import tracking
from mask_ray.config import DEFAULT_MODEL_NAME, MaskRayError, PromotionRule
from mask_ray.evaluation import comparison, grounds
from mask_ray.evaluation.comparison import (
    ClassesError,
    Figures,
    Key,
    NotFiniteError,
    Pair,
    Part,
    Scored,
)
from mask_ray.evaluation.grounds import GroundError, HeldOutImages
from mask_ray.models.predictor import Predictor

# Tag of a registered model: the source of its reference set.
REFERENCE_TAG = "reference_data"

_REFERENCE = "the reference set"
_GIVEN = "the given test split"


@dataclass(frozen=True)
class Decision:
    """Whether a version became the champion.

    Args:
        version: Number of the version.
        promoted: Whether it is the champion now.
        reason: Why, or why not.
        challenger: Figures of the version on all images; None if nothing was compared.
        champion: Figures of the previous champion; None if there was none to compare with.
        grounds: Figures of both on each set of images alone, by the set's name.
    """

    version: str
    promoted: bool
    reason: str
    challenger: Figures | None = None
    champion: Figures | None = None
    grounds: dict[str, Pair] = field(default_factory=dict)


def remember_reference(model: tracking.RegisteredModel, source: str) -> None:
    """Store the source of the reference set with the registered model.

    Raises:
        GroundError: its URI holds credentials.
    """
    model.set_tag(REFERENCE_TAG, grounds.rememberable(source))


class Judge:
    """Compares versions of a registered model.

    Args:
        model: The registered model.
        images: Images to compare on, besides those of the versions' runs.
    """

    def __init__(self, model: tracking.RegisteredModel, images: HeldOutImages) -> None:
        self.model = model
        self._images = images

    def compare(
        self, version: str, champion: str | None, rule: PromotionRule, is_mutual: bool = False
    ) -> Decision:
        """Return whether a version should take the champion's place, without moving anything.

        Args:
            version: Number of the version.
            champion: Number of the champion; None if there is none.
            rule: What the version must show.
            is_mutual: Whether the version's own test split is a ground too, because the given
                images are not its own.

        Raises:
            tracking.ModelNotFoundError: there is no such version.
            MaskRayError: the version is not a classifier of these classes.
        """
        predictor = self._load(version)
        try:
            given = [comparison.score(predictor, Part(self._images.at_size, _GIVEN))]
        except NotFiniteError as error:
            return Decision(version, False, str(error))
        own = comparison.figures(version, given[0])
        try:
            parts = self._reference(predictor.image_size)
            if champion is None:
                scored = [*given, *self._score_all(predictor, parts)]
                return self._decide_alone(version, comparison.join(scored), rule)
            grounds_of = (champion, version) if is_mutual else (champion,)
            return self._decide(predictor, (champion, version), grounds_of, given[0], parts, rule)
        except MaskRayError as error:
            reason = self._why_not_compared(version, champion, error)
            return Decision(version, promoted=False, reason=reason, challenger=own)

    def _why_not_compared(self, version: str, champion: str | None, error: MaskRayError) -> str:
        if champion is None:
            return f"it cannot be compared: {error}"
        if not isinstance(error, ClassesError):
            return f"the champion, version {champion}, cannot be compared: {error}"
        name = "" if self.model.name == DEFAULT_MODEL_NAME else f" --register-as {self.model.name}"
        return (
            f"the champion cannot be compared: {error}. Train under a name of its own with "
            "--register-as NAME, or replace the champion with "
            f"`python -m jobs.promote {version}{name} --force`"
        )

    def _decide_alone(self, version: str, scored: Scored, rule: PromotionRule) -> Decision:
        self._check_classes(scored)
        own = comparison.figures(version, scored)
        return Decision(version, *comparison.decide(rule, own, None), own)

    def _decide(
        self,
        predictor: Predictor,
        both: tuple[str, str],
        grounds_of: tuple[str, ...],
        given: Scored,
        reference: list[Part],
        rule: PromotionRule,
    ) -> Decision:
        champion, version = both
        defending = self._load(champion)
        lists = {each: grounds.load_run_images(self.model.run_id_of(each)) for each in both}
        keys = {_GIVEN: set(given.keys)}
        parts: list[Part] = []
        for each in grounds_of:
            name = f"the test split of version {each}"
            known = set().union(*keys.values())
            keys[name], part = self._part(name, lists[each].tested, known)
            parts += part
        scored = [given, *self._score_all(predictor, [*parts, *reference])]
        if reference:
            keys[_REFERENCE] = set(scored[-1].keys)
        own = comparison.join(scored)
        given_part = Part(self._images.at_size, _GIVEN)
        other = comparison.join(self._score_all(defending, [given_part, *parts, *reference]))
        seen = frozenset().union(*(each.seen for each in lists.values()))
        own, other = own.without(seen), other.without(seen)
        self._check_classes(own)
        pairs = {
            name: Pair(
                _figures_on(name, wanted, version, own), _figures_on(name, wanted, champion, other)
            )
            for name, wanted in keys.items()
        }
        total = comparison.figures(version, own), comparison.figures(champion, other)
        return Decision(version, *comparison.decide(rule, *total, pairs), *total, pairs)

    def _load(self, version: str) -> Predictor:
        """Load a version, and check that it has the classes of the images."""
        path = tracking.resolve_model(f"models:/{self.model.name}/{version}").path
        predictor = Predictor(path, num_threads=os.cpu_count() or 1)
        if list(predictor.class_names) != self._images.class_names:
            raise ClassesError(
                f"version {version} of {self.model.name} has the classes "
                f"{', '.join(predictor.class_names)}, and the images have "
                f"{', '.join(self._images.class_names)}"
            )
        return predictor

    def _score_all(self, predictor: Predictor, parts: list[Part]) -> list[Scored]:
        return [comparison.score(predictor, part) for part in parts]

    def _part(
        self, name: str, files: pa.Table, known: AbstractSet[Key]
    ) -> tuple[set[Key], list[Part]]:
        """Return the keys of listed images, and a part of those that are not known yet, if any."""
        names = self._images.class_names
        labels = files["label"].to_pylist()
        if strange := sorted(set(labels) - set(names)):
            raise GroundError(f"{name} has other classes: {', '.join(strange)}")
        digests = files["digest"].to_pylist()
        keys = [(digest, names.index(label)) for digest, label in zip(digests, labels, strict=True)]
        missing = files.filter(pa.array([key not in known for key in keys], pa.bool_()))
        at_size = grounds.dataset_of(missing, names, self._images.limits)
        return set(keys), [Part(at_size, name)] if len(missing) else []

    def _reference(self, image_size: int) -> list[Part]:
        source = self.model.tags().get(REFERENCE_TAG)
        if source is None:
            return []
        images = grounds.load_reference(source, self._images.limits, image_size)
        if images.class_names != self._images.class_names:
            raise GroundError(
                f"{_REFERENCE} must have the classes {', '.join(self._images.class_names)}; "
                f"got {', '.join(images.class_names)}"
            )
        return [Part(images.at_size, _REFERENCE)]

    def _check_classes(self, scored: Scored) -> None:
        """Reject images that lack a class: a version could be bad at it, and nobody would know."""
        present = {self._images.class_names[label] for _, label in scored.keys}
        if missing := [name for name in self._images.class_names if name not in present]:
            raise GroundError(f"the images to compare on have none of {', '.join(missing)}")


def _figures_on(name: str, keys: AbstractSet[Key], version: str, scored: Scored) -> Figures:
    selected = scored.within(keys)
    if not selected.keys:
        raise GroundError(f"{name} has no image that neither version was trained on")
    return comparison.figures(version, selected)
