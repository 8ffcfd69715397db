"""The inputs that all losses share.

Shape legend: M target positions, D width, R item rows (special rows included).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """Queries with their targets, over a table of item vectors."""

    query_MD: Tensor
    """One query for each target; logits are computed in the dtype of the table."""
    table_RD: Tensor
    """Item vectors, special rows included; those take no part."""
    target_rows_M: Tensor
    """int64 row of the table of each target."""
    weights_M: Tensor
    """Weight of each position; may be 0."""
