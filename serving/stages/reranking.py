"""Orders made of an order: pure functions over positions of candidates, best first.

Shape legend: C candidates, O positions in some order, D vector width.
"""

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from passerelle.arrays import FloatArray, Int64Array


def capped(order_O: Sequence[int], groups_C: Int64Array, most: int) -> list[int]:
    """The order without what comes after the first `most` of its group; -1 is no group.

    >>> capped([0, 1, 2, 3], np.array([7, 7, -1, 7]), most=1)
    [0, 2]
    """
    taken: Counter[int] = Counter()
    kept = []
    for position in order_O:
        group = int(groups_C[position])
        if group < 0 or taken[group] < most:
            kept.append(position)
            taken[group] += 1
    return kept


def mixed(order_O: Sequence[int], groups_C: Int64Array, k: int, *, window: int, most: int) -> list[int]:
    """The first k places, at most `most` of one group among any `window` in a row as long as others are left; order within groups is kept.

    Each place goes to the first of the order that is left and whose group still has room; -1 is no group, and always has.

    >>> mixed([0, 1, 2, 3], np.array([7, 7, 7, 8]), 4, window=2, most=1)
    [0, 3, 1, 2]
    """
    waiting: dict[int, deque[tuple[int, int]]] = {}
    for place, position in enumerate(order_O):
        waiting.setdefault(int(groups_C[position]), deque()).append((place, position))
    chosen: list[int] = []
    recent: deque[int] = deque(maxlen=window - 1)
    while waiting and len(chosen) < k:
        counts = Counter(recent)
        free = [group for group in waiting if group < 0 or counts[group] < most]
        group = min(free or waiting, key=lambda one: waiting[one][0])
        chosen.append(waiting[group].popleft()[1])
        recent.append(group)
        if not waiting[group]:
            del waiting[group]
    return chosen


def maximal_marginal_relevance(
    order_O: Sequence[int], scores_C: FloatArray, vectors_CD: FloatArray, k: int, relevance: float
) -> list[int]:
    """The first k places by Carbonell and Goldstein (1998): `relevance` x score - (1 - `relevance`) x largest cosine to those above.

    Args:
        scores_C: brought to 0..1 here, over the candidates.
    """
    left = np.array(order_O, dtype=np.int64)
    if not len(left):
        return []
    scores = unit_range(scores_C[left])
    vectors = vectors_CD[left] / np.maximum(
        np.linalg.norm(vectors_CD[left], axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    likeness = np.zeros(len(left))
    free = np.ones(len(left), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(left)):
        value = relevance * scores - (1 - relevance) * likeness
        best = int(np.argmax(np.where(free, value, -np.inf)))
        free[best] = False
        cosines = vectors @ vectors[best]
        likeness = cosines if not chosen else np.maximum(likeness, cosines)
        chosen.append(int(left[best]))
    return chosen


def pinned(order: Sequence[int], pins: Sequence[tuple[int, int]], k: int) -> list[int]:
    """k places with some positions put in the places (from 1) they are pinned to, the others as they were.

    >>> pinned([0, 1, 2], [(2, 1)], 3)
    [2, 0, 1]
    """
    there = {position for position, _ in pins}
    answer = [position for position in order if position not in there]
    for position, place in sorted(pins, key=lambda pin: pin[1]):
        answer.insert(place - 1, position)
    return answer[:k]


def unit_range(scores: FloatArray) -> FloatArray:
    """Scores brought linearly to 0..1; all 1 where they are equal."""
    low, high = float(np.min(scores, initial=np.inf)), float(np.max(scores, initial=-np.inf))
    return (scores - low) / (high - low) if high > low else np.ones(len(scores))
