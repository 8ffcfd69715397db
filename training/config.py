"""The configuration of a training run: a recipe (`training/recipes/*.toml`) with `--set
section.key=value`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from passerelle.config import Config, load_config, refuse_idle
from passerelle.errors import UserError
from passerelle.splits import SplitConfig
from training.loss_config import FullLoss, LossConfig
from training.model_config import ItemsConfig, ModelConfig, QueryConfig

RECIPES = Path(__file__).parent / "recipes"


class ObjectiveConfig(Config):
    """What the encoder learns to predict."""

    kind: Literal["masked", "causal"] = "masked"
    """`masked`: masked items from both sides (BERT4Rec).
    `causal`: each next item from those before it (SASRec)."""
    mask_probability: float = Field(default=0.2, gt=0, le=1)
    """`masked`: chance of each item of a window to be masked and predicted."""
    last_only_probability: float = Field(default=0.1, ge=0, le=1)
    """`masked`: chance of a window to have its last item alone masked, as it is when serving."""

    event_types: tuple[str, ...] = ()
    """`causal`: event types to predict, such as clicks; all, if absent.
    Events of other types are history alone."""
    repeats: Literal["each", "log"] = "each"
    """`each`: an event has the weight of its event type.
    `log`: a user's n events with one item weigh log2(1 + n) times as much together."""

    @model_validator(mode="after")
    def _has_no_idle_option(self, info: ValidationInfo) -> "ObjectiveConfig":
        refuse_idle(self, info, {"event_types": (self.kind == "causal", "objective.kind = 'causal'")})
        masked = (self.kind == "masked", "objective.kind = 'masked'")
        refuse_idle(self, info, {"mask_probability": masked, "last_only_probability": masked})
        return self


class BatchConfig(Config):
    """How windows of history are grouped into steps."""

    token_budget: int = Field(default=12_800, gt=0)
    """Tokens (padding included) of one step over all workers."""


class OptimizerConfig(Config):
    """AdamW (betas 0.9 and 0.98) with a linear warm-up, a constant stretch and a linear decay."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate between warm-up and decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of matrices; vectors, norms and the item tables are not decayed."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate grows from zero."""
    decay_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps of `training.max_epochs`, at their end, over which the learning rate falls to a
    twentieth."""
    gradient_clip_norm: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient of all parameters together."""


class TrainingConfig(Config):
    """Length of the training, checkpoints, precision and threads."""

    max_epochs: int = Field(default=200, gt=0)
    """Maximum number of epochs."""
    patience: int = Field(default=10, gt=0)
    """Validations without a better NDCG@10 before training stops."""
    validate_every_epochs: int = Field(default=1, gt=0)
    """Epochs between two validations, each of which ranks the whole catalogue for every user."""
    include_validation: bool = False
    """Train on validation events as well; then nothing is validated and the last weights are kept.
    `train --refit` sets it."""
    stop_after_epochs: int | None = Field(default=None, gt=0)
    """Stop after this epoch, in the learning-rate schedule of `max_epochs`.
    `train --refit` sets it to the epoch that validation chose."""
    checkpoint_every_steps: int = Field(default=1000, gt=0)
    """Steps within an epoch between two checkpoints; there is always one at its end."""
    seed: int = Field(default=0, ge=0)
    """Seeds weights, batches, masks, negatives and dropout, each from a generator of its own."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """`bf16-mixed` is for GPUs.
    Not measured yet."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each worker; by default, the cores of its machine divided by the workers there."""
    log_every_steps: int = Field(default=20, gt=0)
    """Steps between two points of the TensorBoard loss curve."""

    @model_validator(mode="after")
    def _validates_once(self) -> "TrainingConfig":
        if self.stop_after_epochs is not None and self.stop_after_epochs > self.max_epochs:
            raise ValueError(
                f"stop_after_epochs = {self.stop_after_epochs} is above max_epochs = {self.max_epochs}"
            )
        if not self.include_validation and self.validate_every_epochs > self.num_epochs:
            raise ValueError(
                f"validate_every_epochs = {self.validate_every_epochs} is above the {self.num_epochs} epochs "
                "to train"
            )
        return self

    @property
    def num_epochs(self) -> int:
        """Maximum number of epochs to train."""
        return self.stop_after_epochs or self.max_epochs


class RankerConfig(Config):
    """The LightGBM ranker over retrieval candidates."""

    num_candidates: int = Field(default=100, gt=0)
    """Candidates retrieved for a request and given to the ranker."""
    recent_days: int = Field(default=30, gt=0)
    """Days before the end of training that `log_recent_count` looks back."""
    num_trees: int = Field(default=200, gt=0)
    """Maximum number of trees."""
    num_leaves: int = Field(default=7, gt=1)
    """Maximum number of leaves of a tree."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Factor that each tree's output is multiplied by (shrinkage)."""
    min_leaf_events: int = Field(default=500, gt=0)
    """Minimum number of training rows in a leaf."""
    l2_penalty: float = Field(default=10.0, ge=0)
    """Penalty on the squares of leaf values."""
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the validation users held out to choose the number of trees."""


class Recipe(Config):
    """A whole recipe."""

    model: ModelConfig = ModelConfig()
    items: ItemsConfig = ItemsConfig()
    query: QueryConfig = QueryConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    loss: LossConfig = FullLoss()
    """How the target is told from the rest of the catalogue."""
    batches: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    split: SplitConfig = SplitConfig()
    ranker: RankerConfig = RankerConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        if self.objective.kind == "causal" and self.model.head_directions:
            raise ValueError(
                "model.head_directions has no effect with objective.kind = 'causal', "
                "whose heads all look to the past"
            )
        if self.objective.kind == "masked" and self.model.num_blocks == 0:
            raise ValueError(
                "model.num_blocks = 0, the mean of the history, goes with objective.kind = 'causal'"
            )
        if self.items.table == "sparse" and self.loss.kind == "full":
            raise ValueError(
                "loss.kind = 'full' looks at every item in each step: "
                "items.table = 'sparse' goes with 'sampled' or 'gbce'"
            )
        if self.items.table == "sparse" and self.model.output_table == "separate":
            raise ValueError("model.output_table = 'separate' goes with items.table = 'dense'")
        if self.items.kind == "tower" and self.model.output_table == "separate":
            raise ValueError(
                "model.output_table = 'separate' goes with items.kind = 'table': "
                "a tower makes one vector of an item"
            )
        return self

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Returns `section.key` -> (value here, value there) of every setting that is not the same.

        A setting that one of the two does not have, being of another kind, is None there.
        """
        ours, theirs = _flat(self.model_dump()), _flat(other.model_dump())
        return {
            key: (ours.get(key), theirs.get(key))
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with Passerelle."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe by its name or from a TOML file.

    Raises:
        UserError: no such recipe or file, an unknown key, a value out of range, or no such split file.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
        if not path.is_file():
            raise UserError(
                f"recipe {name_or_path!r}: not one of {', '.join(recipe_names())}, nor a .toml file"
            )
    config = load_config(Recipe, path, overrides)
    return config.model_copy(update={"split": config.split.pinned()})
