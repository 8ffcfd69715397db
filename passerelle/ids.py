"""Special rows and column names that every part of the system shares.

`item_id` and `user_id` are the caller's (string or int64): every input and output speaks them.
`item_row` and `user_row` are dense integers, private to one dataset or bundle.
"""

from typing import Final

PADDING_ROW: Final = 0
"""Row that fills a sequence up to a common length; never predicted, never returned."""

MASK_ROW: Final = 1
"""Row that stands where the model has to guess an item (BERT4Rec's `[MASK]`)."""

FIRST_ITEM_ROW: Final = 2
"""Row of the first real item: arrays indexed by `item_row` have `num_items + FIRST_ITEM_ROW` rows."""

MAX_ITEM_ROW: Final = 2**31 - 1
"""Item rows are stored as int32; a catalogue that would pass this is refused, never wrapped around."""

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP_MS: Final = "timestamp_ms"
