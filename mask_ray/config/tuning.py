"""Settings of a hyperparameter search."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from mask_ray.config.backbone import SEARCHED_BLOCKS
from mask_ray.config.base import MayChange, none_for_auto
from mask_ray.config.training import TrainSettings

# Ranges that a search draws from, uniformly on a logarithmic scale.
SEARCH_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-4, 1e-2),
    "finetune_learning_rate": (1e-5, 1e-3),
}
# Values that a search chooses from; for the batch size, factors.
SEARCH_CHOICES: dict[str, tuple[Any, ...]] = {
    "batch_size": (0.5, 1, 2),
    "finetune_from": SEARCHED_BLOCKS,
    "augmented_views": (0, 1, 3),
    "augmentation": (0.5, 1.0, 1.5),
    "warmup_epochs": (0, 1, 2),
}


class TuneSettings(TrainSettings):
    """Search the main settings of a training run by trials with Ray Tune; registers no model."""

    search: str | None = Field(
        None,
        min_length=1,
        description="Settings to search, separated by commas (default: all of the following that "
        "have an effect and whose flags are not given). "
        + "; ".join(f"{k}: {low:g} to {high:g}" for k, (low, high) in SEARCH_RANGES.items())
        + "; batch_size: half, same, double; "
        + "; ".join(
            f"{name}: {', '.join(map(str, values))}"
            for name, values in SEARCH_CHOICES.items()
            if name != "batch_size"
        )
        + ". The first trial uses the settings of a training run without a search.",
    )
    num_trials: int = Field(16, ge=1, le=1000, description="Number of trials.")
    max_concurrent: Annotated[int | None, BeforeValidator(none_for_auto)] = Field(
        None,
        ge=1,
        description="Trials that run at a time (default: as many as fit, with two CPUs, or with "
        "--use-gpu one GPU, for each worker).",
    )
    grace_epochs: Annotated[int | None, BeforeValidator(none_for_auto)] = Field(
        None,
        ge=1,
        description="Epochs before a trial can be stopped for falling behind the others (default: "
        "a fifth of all epochs).",
    )
    resume: Annotated[str | None, MayChange()] = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Resume the search of this MLflow run: its unfinished trials and those that "
        "have not started. Its settings are kept; flags override those that may change.",
    )

    @property
    def num_epochs(self) -> int:
        """Epochs of a trial that is not stopped early."""
        return self.head_epochs + self.finetune_epochs

    @property
    def searched(self) -> list[str]:
        """Names of the settings to search."""
        if self.search is not None:
            return [name.strip().replace("-", "_") for name in self.search.split(",")]
        return [name for name in self._effective() if name not in self.model_fields_set]

    def _effective(self) -> list[str]:
        scratch = self.backbone_weights == "none"
        head, finetune = self.head_epochs > 0, self.finetune_epochs > 0 and not scratch
        views = head and self.augmented_views > 0
        effects = {
            "learning_rate": scratch or head,
            "finetune_learning_rate": finetune,
            "batch_size": True,
            "finetune_from": finetune,
            "augmented_views": head,
            "augmentation": scratch or finetune or views,
            "warmup_epochs": scratch,
        }
        return [name for name, has_effect in effects.items() if has_effect]

    @model_validator(mode="after")
    def _search_is_possible(self) -> Self:
        if unknown := [name for name in self.searched if name not in self._effective()]:
            raise ValueError(
                f"search must name settings that have an effect here: "
                f"{', '.join(self._effective())}; got {', '.join(unknown)}"
            )
        if not self.searched:
            raise ValueError(
                "search must name settings, since all that a search tries have values: "
                f"{', '.join(self._effective())}"
            )
        if self.grace_epochs is not None and self.grace_epochs > self.num_epochs:
            raise ValueError(
                f"grace_epochs must be at most head_epochs + finetune_epochs "
                f"({self.num_epochs}); got {self.grace_epochs}"
            )
        return self
