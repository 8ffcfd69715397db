"""Slices of flat arrays, of different lengths.

Shape legend: B slices, B1 = B + 1, T elements of all slices.
"""

import numpy as np

from passerelle.arrays import Int64Array


def gather_ragged(start_B: Int64Array, end_B: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Returns the positions [T] of all slices `start : end`, and the offsets [B1] between them, without a
    loop.

    >>> [part.tolist() for part in gather_ragged(np.array([7, 2]), np.array([9, 5]))]
    [[7, 8, 2, 3, 4], [0, 2, 5]]
    """
    lengths_B = end_B - start_B
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)])
    positions_T = np.arange(offsets_B1[-1]) + np.repeat(start_B - offsets_B1[:-1], lengths_B)
    return positions_T, offsets_B1
