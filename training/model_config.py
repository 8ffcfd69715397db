"""The configuration of a model: its encoder, its item vectors, and the features of queries."""

from typing import Literal

from pydantic import Field, ValidationInfo, model_validator

from passerelle.config import Config, refuse_idle


class ModelConfig(Config):
    """Shape of the sequence encoder."""

    dim: int = Field(default=64, gt=0)
    """Width of item vectors, hidden states and queries."""
    num_blocks: int = Field(default=2, ge=0)
    """Number of transformer blocks.
    Without any there is no attention: a query is made of the mean of the history's vectors (pooling)."""
    num_heads: int = Field(default=2, gt=0)
    """Number of attention heads; divides `dim`."""
    distance_slopes: tuple[float, ...] = (0.5, 0.03)
    """One a head: how much attention logits fall with each item of distance; 0 for no preference."""
    head_directions: tuple[Literal["past", "both", "future"], ...] = ()
    """One a head: the side of a position it attends to, beside the position itself; `both` everywhere if
    absent."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """`learned`: a vector for each position, counted from the newest item.
    `rotary`: queries and keys are turned by their position."""
    time_bias: bool = False
    """Attention also depends on the time between events, and the query on the time of the request."""
    time_gap: bool = False
    """Give each position the time between the item it predicts and the event before that one; when
    serving, the time from the last event to the request."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm, or RMS norm."""
    norm_first: bool = True
    """Normalise before each layer (pre-norm) or after its residual sum (post-norm, as in the papers of 2017
    to 2019)."""
    feedforward: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the feed-forward layer; `swiglu` has half as many weights again."""
    gated: bool = False
    """Multiply what each layer adds by a learned gate of its input."""
    feedforward_multiple: int = Field(default=4, gt=0)
    """Width of the feed-forward layer, in multiples of `dim`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of embeddings and both residual branches; attention weights have none, so that fused kernels
    apply."""
    output_table: Literal["tied", "separate"] = "tied"
    """`tied`: one vector for an item in the history and as a candidate.
    `separate`: two, for twice the memory."""
    attention_kernel: Literal["dense", "flex"] = "dense"
    """`flex` (PyTorch's FlexAttention, compiled) computes the bias of distance and time where it is used; on
    a CUDA device only, elsewhere `dense` does the work.
    Not measured yet."""
    event_types: bool = False
    """Add a vector of the event type (a click, a booking) to each item of a history."""
    max_history: int = Field(default=200, ge=2)
    """Longest history, in items, the encoder looks at; older items are ignored."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "ModelConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads} does not divide dim = {self.dim}")
        if len(self.distance_slopes) != self.num_heads:
            raise ValueError(
                f"distance_slopes has {len(self.distance_slopes)} values for num_heads = {self.num_heads}"
            )
        if self.head_directions and len(self.head_directions) != self.num_heads:
            raise ValueError(
                f"head_directions has {len(self.head_directions)} values for num_heads = {self.num_heads}"
            )
        if self.positions == "rotary" and self.dim // self.num_heads % 2:
            raise ValueError(
                "positions = 'rotary' needs heads of even width: "
                f"dim / num_heads = {self.dim // self.num_heads}"
            )
        if self.num_blocks == 0 and (self.time_bias or self.head_directions or self.positions == "rotary"):
            raise ValueError(
                "num_blocks = 0 leaves time_bias, head_directions and positions = 'rotary' "
                "without attention to work on"
            )
        return self


class ItemsConfig(Config):
    """The origin of item vectors.

    An option that the others leave without effect is an error.
    """

    kind: Literal["table", "tower"] = "table"
    """`table`: learnt for each item alone.
    `tower`: of the item and of its declared features together, of length 1 as queries then are, so that an
    item without events has one, too (two-tower)."""
    table: Literal["dense", "sparse"] = "dense"
    """The table of vectors learnt for each item alone.
    `dense`: a parameter like others, all of whose rows are computed with in each step.
    `sparse`: a TorchRec collection, of which a step touches the rows it looks up, trained by row-wise
    Adagrad; for many items and a sampled loss."""
    table_learning_rate: float = Field(default=0.05, gt=0)
    """`sparse`: learning rate of row-wise Adagrad, which warms up and falls as that of the other parameters
    does.
    Its gradients are not clipped, and not counted in the norm that clips the others."""
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    """`tower`: share of the items of a step that are known by their features alone, which makes those good
    for new items."""
    features: tuple[str, ...] | None = None
    """`tower`: item features to use; all that are declared if absent, and text only with a `text_encoder`."""
    text_encoder: str | None = None
    """`tower`: what makes vectors of text: `wordllama` (`pip install -e ".[text]"` in the checkout), or the
    folder of a static model of yours (`tokenizer.json` and `model.safetensors`, as Model2Vec writes them)."""
    min_value_items: int = Field(default=2, gt=0)
    """`tower`: items that a categorical value needs for a vector of its own; rarer ones and those of later
    items share one."""

    @model_validator(mode="after")
    def _has_no_idle_option(self, info: ValidationInfo) -> "ItemsConfig":
        tower = (self.kind == "tower", "items.kind = 'tower'")
        refuse_idle(self, info, {"table_learning_rate": (self.table == "sparse", "items.table = 'sparse'")})
        refuse_idle(
            self,
            info,
            {"id_dropout": tower, "features": tower, "text_encoder": tower, "min_value_items": tower},
        )
        return self


class QueryConfig(Config):
    """What a query is made of beside the history of its user.

    An option that the others leave without effect is an error.
    """

    features: Literal["all"] | tuple[str, ...] = ()
    """Features of users and context features of events to use: names, or `all` that are declared.
    `all` leaves out text, and what `from_events` derives from a user's events, because that includes
    events of validation and test."""
    time_features: tuple[Literal["hour", "weekday"], ...] = ()
    """Features of the time of the request (UTC): in training, of the event that is predicted."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the histories of a step whose query is made without features, as for a request that gives
    none.
    User features and context features are dropped independently."""
    min_value_users: int = Field(default=2, gt=0)
    """Users, or events, that a categorical value needs for a vector of its own; rarer ones and unknown ones
    share one."""

    @model_validator(mode="after")
    def _has_no_idle_option(self, info: ValidationInfo) -> "QueryConfig":
        with_features = (bool(self.features), "query.features")
        refuse_idle(self, info, {"dropout": with_features, "min_value_users": with_features})
        return self
