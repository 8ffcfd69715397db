"""Columns of categories, single ones or lists, as (row, value) pairs.

Shape legend: N rows, T values of all rows.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from passerelle.arrays import Int64Array


class CategoryPairs(NamedTuple):
    """Every value of a column with its row, in the order of rows and, within a row, of its list."""

    row_T: Int64Array
    value_T: pa.Array


class CategoryCodes(NamedTuple):
    """Every value of a column as a code, with its row."""

    row_T: Int64Array
    code_T: Int64Array
    """Codes `0 .. num_values - 1`, in the order in which values first occur."""
    num_values: int


def explode(column: pa.Array | pa.ChunkedArray) -> CategoryPairs:
    """Returns the (row, value) pairs of a column of single values or of lists of values.

    A row without a value, or with an empty list, is in no pair; a null within a list is a pair of its own.

    >>> pairs = explode(pa.array([["a", "b"], None, [], ["b"]]))
    >>> pairs.row_T.tolist(), pairs.value_T.to_pylist()
    ([0, 0, 3], ['a', 'b', 'b'])
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths_N = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return CategoryPairs(np.repeat(np.arange(len(column)), lengths_N), column.flatten())
    row_T = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    return CategoryPairs(row_T, column.drop_null())


def category_codes(column: pa.Array | pa.ChunkedArray) -> CategoryCodes:
    """Returns the values of a column as texts, coded by first occurrence; see `explode`."""
    row_T, value_T = explode(column)
    encoded = value_T.cast(pa.string()).dictionary_encode()
    code_T = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return CategoryCodes(row_T, code_T, len(encoded.dictionary))
