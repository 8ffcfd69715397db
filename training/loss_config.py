"""The configuration of the loss and of where its negatives come from: one class for each kind."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from passerelle.config import Config, kind_or, refuse_idle

Counts = Literal["events", "targets"] | None
"""What a sampler needs counted of each item before training."""


class UniformSampling(Config):
    """Every item is drawn with the same probability."""

    kind: Literal["uniform"] = "uniform"
    counts: ClassVar[Counts] = None


class LogUniformSampling(Config):
    """Items are drawn by Zipf's law over their ranks by training events."""

    kind: Literal["log_uniform"] = "log_uniform"
    counts: ClassVar[Counts] = "events"


class PopularitySampling(Config):
    """Items are drawn in proportion to a power of the counts of their training events."""

    kind: Literal["popularity"] = "popularity"
    counts: ClassVar[Counts] = "events"
    exponent: float = Field(default=1.0, ge=0)
    """Items are drawn in proportion to (count + 1) to this power."""


class StreamingSampling(Config):
    """Items are drawn in proportion to frequencies that are estimated while training."""

    kind: Literal["streaming"] = "streaming"
    counts: ClassVar[Counts] = None
    rate: float = Field(default=0.01, gt=0, lt=1)
    """Weight of the newest gap between two appearances of an item; about 1 over it are remembered."""


class InBatchSampling(Config):
    """Negatives are the targets of the step itself."""

    kind: Literal["in_batch"] = "in_batch"
    streaming_rate: float | None = Field(default=None, gt=0, lt=1)
    """Estimate how often an item is a target while training, as `streaming` does, with this `rate`.
    If absent, it is counted before training."""
    gather_negatives: bool = True
    """The targets of all workers are negatives on each, as they would be with one worker."""

    @property
    def counts(self) -> Counts:
        """Returns what is to be counted of each item before training."""
        return "targets" if self.streaming_rate is None else None


class MixedSampling(Config):
    """Negatives are targets of the step and uniformly drawn items."""

    kind: Literal["mixed"] = "mixed"
    counts: ClassVar[Counts] = None
    in_batch_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the negatives that are targets of the step; the rest are uniform."""
    gather_negatives: bool = True
    """The targets of all workers are negatives on each, as they would be with one worker."""


SamplerConfig = Annotated[
    UniformSampling
    | LogUniformSampling
    | PopularitySampling
    | StreamingSampling
    | InBatchSampling
    | MixedSampling,
    Field(discriminator="kind"),
    kind_or("uniform"),
]


class FullLoss(Config):
    """Softmax over the whole catalogue, in chunks."""

    kind: Literal["full"] = "full"
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    max_logits: int | None = Field(default=None, gt=0)
    """Logits (positions times items) held at once, 4 bytes each, but those of 64 positions at least.
    Chosen by device if absent."""


class SampledLoss(Config):
    """Softmax over negatives that positions share, corrected by their log-probability."""

    kind: Literal["sampled"] = "sampled"
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    num_negatives: int = Field(default=256, gt=0)
    """Negatives of each position; at most, with the sampler `in_batch`."""
    num_draws: int = Field(default=64, gt=0)
    """Draws of a step, each of `num_negatives`; its positions take them in turn.
    More of them make steps less noisy, and look up more rows of the table
    (`num_draws` x `num_negatives` x `dim` x 4 bytes, and as much for gradients).
    With 1, all positions share the same negatives."""
    log_q_correction: bool = True
    """Correct logits by how often their items are drawn.
    Without it, what is learnt is biased by the sampler."""
    correct_target: bool = True
    """Correct the target as well, so that what is learnt is right for few negatives too
    (nearly so with `in_batch` and `mixed`).
    Without it, few of them bias what is learnt."""
    sampler: SamplerConfig = UniformSampling()
    """The distribution that negatives are drawn from.
    `loss.sampler=popularity` is short for `loss.sampler.kind=popularity`."""

    @model_validator(mode="after")
    def _has_no_idle_option(self, info: ValidationInfo) -> "SampledLoss":
        refuse_idle(self, info, {"correct_target": (self.log_q_correction, "loss.log_q_correction")})
        estimates = self.sampler.kind == "in_batch" and self.sampler.streaming_rate is not None
        if estimates and not self.log_q_correction:
            raise ValueError("sampler.streaming_rate has no effect without loss.log_q_correction")
        return self

    @model_validator(mode="after")
    def _mixes_both(self) -> "SampledLoss":
        if self.sampler.kind != "mixed":
            return self
        num_in_batch = round(self.num_negatives * self.sampler.in_batch_share)
        if not 0 < num_in_batch < self.num_negatives:
            share = f"in_batch_share = {self.sampler.in_batch_share:g}"
            raise ValueError(
                f"{share} of num_negatives = {self.num_negatives} is {num_in_batch}: "
                "sampler = 'mixed' needs some of both kinds"
            )
        return self


class GbceLoss(Config):
    """Binary cross entropy over uniform negatives that positions share, calibrated for their number
    (gSASRec).
    """

    kind: Literal["gbce"] = "gbce"
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    num_negatives: int = Field(default=256, gt=0)
    """Negatives of each position."""
    num_draws: int = Field(default=64, gt=0)
    """Draws of a step, as for `sampled`."""
    gbce_calibration: float = Field(default=0.75, ge=0, le=1)
    """With 0, it is plain binary cross entropy, whose probabilities are too high.
    With 1, the probabilities are those of all items as negatives."""


LossConfig = Annotated[
    FullLoss | SampledLoss | GbceLoss,
    Field(discriminator="kind"),
    kind_or("full"),
]
