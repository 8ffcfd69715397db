"""Functions that rearrange an order: a list of indices of candidates, best first.

Shape legend: C candidates, O indices of candidates in some order, D vector width.
"""

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from passerelle.arrays import FloatArray, Int64Array


def capped(order_O: Sequence[int], groups_C: Int64Array, max_items: int) -> list[int]:
    """Returns the order with the first `max_items` of each group; -1 is no group.

    >>> capped([0, 1, 2, 3], np.array([7, 7, -1, 7]), max_items=1)
    [0, 2]
    """
    counts: Counter[int] = Counter()
    kept = []
    for index in order_O:
        group = int(groups_C[index])
        if group < 0 or counts[group] < max_items:
            kept.append(index)
            counts[group] += 1
    return kept


def mixed(order_O: Sequence[int], groups_C: Int64Array, k: int, *, window: int, max_items: int) -> list[int]:
    """Returns k indices with at most `max_items` of one group among any `window` in a row.

    Each position gets the first remaining candidate whose group is below its limit, or simply the first where
    there is none.
    The order within groups is kept; -1 is no group and has no limit.

    >>> mixed([0, 1, 2, 3], np.array([7, 7, 7, 8]), 4, window=2, max_items=1)
    [0, 3, 1, 2]
    """
    waiting: dict[int, deque[tuple[int, int]]] = {}
    for rank, index in enumerate(order_O):
        waiting.setdefault(int(groups_C[index]), deque()).append((rank, index))
    chosen: list[int] = []
    recent: deque[int] = deque(maxlen=window - 1)
    while waiting and len(chosen) < k:
        counts = Counter(recent)
        free = [group for group in waiting if group < 0 or counts[group] < max_items]
        group = min(free or waiting, key=lambda one: waiting[one][0])
        chosen.append(waiting[group].popleft()[1])
        recent.append(group)
        if not waiting[group]:
            del waiting[group]
    return chosen


def maximal_marginal_relevance(
    order_O: Sequence[int], scores_C: FloatArray, vectors_CD: FloatArray, k: int, relevance: float
) -> list[int]:
    """Returns the first k indices by maximal marginal relevance (Carbonell and Goldstein 1998).

    The value of a candidate is `relevance` x score - (1 - `relevance`) x largest cosine to those above it.

    Args:
        scores_C: float [C]; scaled to 0..1 over the candidates.
        vectors_CD: float [C, D].
    """
    left = np.array(order_O, dtype=np.int64)
    if not len(left):
        return []
    scores = unit_range(scores_C[left])
    vectors = vectors_CD[left] / np.maximum(
        np.linalg.norm(vectors_CD[left], axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    similarity = np.zeros(len(left))
    free = np.ones(len(left), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(left)):
        value = relevance * scores - (1 - relevance) * similarity
        best = int(np.argmax(np.where(free, value, -np.inf)))
        free[best] = False
        cosines = vectors @ vectors[best]
        similarity = cosines if not chosen else np.maximum(similarity, cosines)
        chosen.append(int(left[best]))
    return chosen


def pinned(order: Sequence[int], pins: Sequence[tuple[int, int]], k: int) -> list[int]:
    """Returns k indices with the pinned ones at their positions and the others in their order.

    Args:
        pins: index of a candidate and its position, from 1.

    >>> pinned([0, 1, 2], [(2, 1)], 3)
    [2, 0, 1]
    """
    pinned_indices = {index for index, _ in pins}
    answer = [index for index in order if index not in pinned_indices]
    for index, position in sorted(pins, key=lambda pin: pin[1]):
        answer.insert(position - 1, index)
    return answer[:k]


def unit_range(scores: FloatArray) -> FloatArray:
    """Returns scores scaled linearly to 0..1; all 1 where they are equal."""
    low, high = float(np.min(scores, initial=np.inf)), float(np.max(scores, initial=-np.inf))
    return (scores - low) / (high - low) if high > low else np.ones(len(scores))
