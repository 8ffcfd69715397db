"""Confidence intervals of means over users, by percentile bootstrap.

Users are drawn with replacement, as many as there are, many times.
The spread of the means of the draws estimates that of the mean
(Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13).
One draw serves every column.
Two models are compared by their difference per user, in which common effects cancel out.
They differ where the interval of that difference does not contain 0.

Shape legend: Q users, M values of a user (metrics, or models), S resamples, C resamples of a chunk.
"""

from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Float64Array

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_CHUNK_DRAWS = 2**22
"""Maximum number of users drawn at once: 32 MB of positions."""


@dataclass(frozen=True)
class Interval:
    """A mean over users and its confidence interval."""

    mean: float
    low: float
    high: float


def resampled_means(
    values_QM: Float64Array, generator: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Float64Array:
    """Return means [S, M] of every column over S draws of Q users with replacement.

    Memory does not grow with S times Q.

    >>> means_SM = resampled_means(np.array([[0.0, 1.0], [0.0, 3.0]]), np.random.default_rng(0), 50)
    >>> np.unique(means_SM).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    num_users = len(values_QM)
    assert num_users and num_resamples > 0, "nothing to draw from, or no draw"
    means_SM = np.empty((num_resamples, values_QM.shape[1]))
    chunk = max(1, _CHUNK_DRAWS // num_users)
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn_CQ = (
            generator.integers(num_users, size=(size, num_users)) + num_users * np.arange(size)[:, None]
        )
        times_CQ = np.bincount(drawn_CQ.ravel(), minlength=size * num_users).reshape(size, num_users)
        means_SM[start : start + size] = times_CQ @ values_QM / num_users
    return means_SM


def intervals(
    values_QM: Float64Array,
    generator: np.random.Generator,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Return the mean of each column over users with its percentile interval, all from the same draws.

    Args:
        values_QM: float64, one row per user, at least one.
        num_resamples: draws; 1000 make the ends of a 95 % interval steady to about a tenth of its width.
        confidence: share of the draws inside the interval, in (0, 1).
    """
    assert 0 < confidence < 1, f"confidence = {confidence}"
    means_SM = resampled_means(values_QM, generator, num_resamples)
    low_M, high_M = np.quantile(means_SM, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    means_M = values_QM.mean(axis=0)
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(means_M, low_M, high_M, strict=True)
    ]
