"""What the encoder predicts in a window of history: masked items (BERT4Rec) or each next item (SASRec).

Shape legend: B windows, B1 = B + 1, E events of the windows, T tokens given to the encoder, M target
positions.
"""

from dataclasses import dataclass, replace

import numpy as np

from passerelle.arrays import BoolArray, Float64Array, Int64Array
from passerelle.ragged import gather_ragged
from training.config import ObjectiveConfig


@dataclass(frozen=True)
class PredictionTargets:
    """Which events become tokens, and which are predicted; events are counted from 0 over all windows."""

    event_T: Int64Array
    """The event of each token."""
    offsets_B1: Int64Array
    """Start of each window among the tokens."""
    masked_T: BoolArray
    """Which tokens are masked."""
    time_event_T: Int64Array
    """The event whose time each token predicts at."""
    token_M: Int64Array
    """The token that each target is predicted from."""
    target_M: Int64Array
    """The event whose item is the target."""

    def only(self, is_target_E: BoolArray) -> "PredictionTargets":
        """Returns the same tokens with targets among some events alone."""
        kept_M = is_target_E[self.target_M]
        return replace(self, token_M=self.token_M[kept_M], target_M=self.target_M[kept_M])

    def targets_per_window(self) -> Int64Array:
        """Returns the number of targets [B] of each window."""
        return np.diff(np.searchsorted(self.token_M, self.offsets_B1))


def masked_items(
    offsets_B1: Int64Array, config: ObjectiveConfig, generator: np.random.Generator
) -> PredictionTargets:
    """Masks items at random (the Cloze task).

    The last item alone is masked in windows that are drawn for it, and in those where nothing else would be.
    """
    lengths_B = np.diff(offsets_B1)
    masked_T = generator.random(offsets_B1[-1]) < config.mask_probability
    last_only_B = generator.random(len(lengths_B)) < config.last_only_probability
    last_only_B |= np.add.reduceat(masked_T, offsets_B1[:-1]) == 0
    masked_T &= ~np.repeat(last_only_B, lengths_B)
    masked_T[offsets_B1[1:][last_only_B] - 1] = True
    event_T = np.arange(offsets_B1[-1])
    token_M = np.flatnonzero(masked_T)
    return PredictionTargets(event_T, offsets_B1, masked_T, event_T, token_M, token_M)


def next_items(offsets_B1: Int64Array) -> PredictionTargets:
    """Predicts the next event from every event of a window but its last."""
    is_last_E = np.zeros(offsets_B1[-1], dtype=np.bool_)
    is_last_E[offsets_B1[1:] - 1] = True
    event_T = np.flatnonzero(~is_last_E)
    token_M = np.arange(len(event_T))
    tokens_before_B1 = offsets_B1 - np.arange(len(offsets_B1))
    return PredictionTargets(
        event_T, tokens_before_B1, np.zeros(len(event_T), dtype=np.bool_), event_T + 1, token_M, event_T + 1
    )


def expected_targets(offsets_B1: Int64Array, config: ObjectiveConfig) -> Float64Array:
    """Returns how often each event [E] of some windows is a target in an epoch, on average."""
    lengths_B = np.diff(offsets_B1)
    last_B, first_B = offsets_B1[1:] - 1, offsets_B1[:-1]
    if config.kind == "causal":
        expected_E = np.ones(offsets_B1[-1])
        expected_E[first_B] = 0.0
        return expected_E
    mask, last_only = config.mask_probability, config.last_only_probability
    expected_E = np.full(offsets_B1[-1], (1 - last_only) * mask)
    # The last item: alone where that is drawn, else masked by chance, or because chance has masked nothing.
    expected_E[last_B] = last_only + (1 - last_only) * (mask + (1 - mask) ** lengths_B)
    return expected_E


def select_windows(targets: PredictionTargets, mine_B: Int64Array) -> PredictionTargets:
    """Returns the tokens and targets of some windows, in the given order."""
    token_T, offsets_B1 = gather_ragged(targets.offsets_B1[mine_B], targets.offsets_B1[mine_B + 1])
    target_T = np.full(len(targets.event_T), -1)
    target_T[targets.token_M] = targets.target_M
    token_M = np.flatnonzero(target_T[token_T] >= 0)
    return PredictionTargets(
        targets.event_T[token_T],
        offsets_B1,
        targets.masked_T[token_T],
        targets.time_event_T[token_T],
        token_M,
        target_T[token_T][token_M],
    )
