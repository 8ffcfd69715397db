"""Encoded features of the users of a dataset, and of the contexts of its events.

Shape legend: U users, E events, N queries, S code slots, F numbers.
"""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from passerelle.dataset import Dataset, FeatureColumn
from passerelle.encoding import FeatureEncoding, QueryEncoding, fit_encoding
from passerelle.errors import UserError
from passerelle.splits import Split
from training.data.windows import training_events
from training.model.towers import QueryFeatureBatch
from training.model_config import QueryConfig

_BLOCK_ROWS = 2**20


class QueryFeatures(nn.Module):
    """Encoded features of all users and events, as buffers that move with the model.

    Each buffer ends with a row of zeros, which the index `UNKNOWN` (-1) selects.

    Args:
        encoding: of users and contexts.
        users: codes [U, S] and numbers [U, F] of all users.
        contexts: codes [E, S] and numbers [E, F] of all events.
    """

    user_codes: Tensor
    user_numbers: Tensor
    context_codes: Tensor
    context_numbers: Tensor

    def __init__(
        self, encoding: QueryEncoding, users: tuple[Tensor, Tensor], contexts: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__()
        self.encoding = encoding
        for name, values in zip(QueryFeatureBatch._fields, (*users, *contexts), strict=True):
            self.register_buffer(
                name, torch.cat([values, values.new_zeros(1, values.shape[1])]), persistent=False
            )

    def forward(self, user_rows_N: Tensor, events_N: Tensor) -> QueryFeatureBatch:
        """Returns the features of users (int64 rows) and of the contexts of events (int64 positions)."""
        # Without columns, a buffer holds the row of zeros only.
        user_N, event_N = (
            user_rows_N.clamp(max=len(self.user_codes) - 1),
            events_N.clamp(max=len(self.context_codes) - 1),
        )
        return QueryFeatureBatch(
            self.user_codes[user_N],
            self.user_numbers[user_N],
            self.context_codes[event_N],
            self.context_numbers[event_N],
        )


def encode_query_features(dataset: Dataset, split: Split, config: QueryConfig) -> QueryFeatures:
    """Returns features of all users and events, by encodings fitted to those with training events.

    Raises:
        UserError: a named feature is not declared, or is text.
    """
    users, contexts = chosen_query_features(dataset, config)
    positions_T, _ = training_events(split)
    seen_U = split.train_end_U > split.start_U
    encoding = QueryEncoding(
        user=fit_encoding(dataset.users.filter(pa.array(seen_U)), users, config.min_value_users),
        context=fit_encoding(
            dataset.contexts.take(pa.array(positions_T)) if contexts else dataset.contexts,
            contexts,
            config.min_value_users,
        ),
    )
    return QueryFeatures(
        encoding, _encoded(encoding.user, dataset.users), _encoded(encoding.context, dataset.contexts)
    )


def chosen_query_features(
    dataset: Dataset, config: QueryConfig
) -> tuple[tuple[FeatureColumn, ...], tuple[FeatureColumn, ...]]:
    """Returns the user features and the context features that a recipe uses.

    Raises:
        UserError: a named one is not declared, or is text.
    """
    declared = (dataset.manifest.user_features, dataset.manifest.context_features)
    usable = [[feature for feature in features if feature.kind != "text"] for features in declared]
    if config.features == "all":
        return tuple(feature for feature in usable[0] if not feature.from_events), tuple(usable[1])
    names = [feature.name for features in usable for feature in features]
    if missing := [name for name in config.features if name not in names]:
        raise UserError(
            f"query.features: {', '.join(missing)}: no feature of users or of contexts in {dataset.path} "
            f"that a query can use; there are: {', '.join(names) or 'none'}"
        )
    users, contexts = (
        tuple(feature for feature in features if feature.name in config.features) for features in usable
    )
    return users, contexts


def _encoded(encoding: FeatureEncoding, table: pa.Table) -> tuple[Tensor, Tensor]:
    """Returns codes (int32) and numbers (float32) of all rows of a table.

    An encoding without columns gives no rows.
    """
    rows = table.num_rows if encoding.columns else 0
    codes = np.zeros((rows, encoding.num_slots), dtype=np.int32)
    numbers = np.zeros((rows, encoding.num_numbers), dtype=np.float32)
    for start in range(0, rows, _BLOCK_ROWS):
        part = encoding.encode(table.slice(start, _BLOCK_ROWS))
        block = slice(start, start + len(part.codes_NS))
        codes[block], numbers[block] = part.codes_NS, part.numbers_NF
    return torch.from_numpy(codes), torch.from_numpy(numbers)
