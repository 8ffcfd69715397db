"""Eligibility rules, which hold for every source, playlist, fallback and pin.

Shape legend: B blocked items.
"""

import logging
from pathlib import Path

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.errors import UserError
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.eligibility_config import Rules
from serving.schemas.filters import Filter, Not, Or, Present, Range
from serving.schemas.recommend import Context
from serving.stages.types import RequestTime
from serving.watched_file import WatchedFile

logger = logging.getLogger(__name__)


class EligibilityRules:
    """The rules as conditions on columns, and the rows that are blocked.

    Args:
        rules: the configured rules; their columns exist (`check`).
        item_ids: ids of the items, for the block list.

    Raises:
        UserError: the block list cannot be read.
    """

    def __init__(self, rules: Rules, item_ids: IdMap) -> None:
        self._rules = rules
        self._blocked = (
            None
            if rules.block_list is None
            else WatchedFile(rules.block_list, lambda path: read_block_list(path, item_ids))
        )

    @staticmethod
    def check(rules: Rules, catalogue: Catalogue) -> None:
        """Checks that the columns of the rules exist, and have the kinds that the rules need.

        Raises:
            UserError: a column does not.
        """
        for name in ("min_age_column", "price_column", "stock_column"):
            if (column := getattr(rules, name)) is not None:
                catalogue.require(column, ("numeric",), f"rules.{name}")
        if rules.ends_column is not None:
            catalogue.require(rules.ends_column, ("timestamp",), "rules.ends_column")

    def conditions(self, context: Context, request_time: RequestTime) -> tuple[Filter, ...]:
        """Returns the conditions that hold in addition to those of a request.

        An item without a value meets the condition on that column.
        """
        rules = self._rules
        conditions: list[Filter] = []
        if rules.min_age_column is not None:
            conditions.append(_unless_above(rules.min_age_column, 0 if context.age is None else context.age))
        if rules.price_column is not None and context.credit is not None:
            conditions.append(_unless_above(rules.price_column, context.credit))
        if rules.stock_column is not None:
            sold_out = Range(op="range", column=rules.stock_column, max=0)
            conditions.append(Not(op="not", condition=sold_out))
        if rules.ends_column is not None:
            # a request that is dated in the past must not bring back items that have ended
            now_ms = max(request_time.timestamp_ms, request_time.now_ms)
            ended = Range(op="range", column=rules.ends_column, max=now_ms - 1)
            conditions.append(Not(op="not", condition=ended))
        return tuple(conditions)

    def blocked_B(self) -> Int64Array:
        """Returns the item rows of the block list as it is now."""
        return np.empty(0, dtype=np.int64) if self._blocked is None else self._blocked.value


def _unless_above(column: str, limit: float) -> Filter:
    unknown = Not(op="not", condition=Present(op="present", column=column))
    return Or(op="or", conditions=(unknown, Range(op="range", column=column, max=limit)))


def read_block_list(path: Path, item_ids: IdMap) -> Int64Array:
    """Returns the rows of the items that a file names, an id a line.

    The number of lines that name no item is logged.

    Raises:
        UserError: the file is missing, cannot be read, or is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such block list: make an empty file where nothing is blocked") from None
    except OSError as error:
        raise UserError(f"{path}: the block list cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
    parsed, num_unknown = [], 0
    for line in filter(None, map(str.strip, lines)):
        try:
            parsed.append(item_ids.parse(line))
        except UserError:
            num_unknown += 1
    rows = item_ids.rows(parsed) if parsed else np.empty(0, dtype=np.int64)
    known = rows[rows >= FIRST_ITEM_ROW]
    num_unknown += len(rows) - len(known)
    logger.info("%s: %d items blocked, %d lines name none", path, len(known), num_unknown)
    return known
