"""What is known of the queries of a dataset beside their histories: features of users, and of the circumstances of events.

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

_ENCODED_AT_ONCE = 2**20


class QueryFeatures(nn.Module):
    """Encoded features of all users and events of a dataset, as buffers, each with a row of zeros at its end, which `UNKNOWN` finds.

    Args:
        encoding: what they are encoded by.
        users: codes [U, S] and numbers [U, F] of every user.
        contexts: the same of every event.
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
        """What is known of users (int64 rows) in the circumstances of events (int64 positions)."""
        # Where nothing is encoded there is the row of zeros alone.
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


def query_features(dataset: Dataset, split: Split, config: QueryConfig) -> QueryFeatures:
    """Codes and numbers of every user and event, by encodings learnt from those that training sees.

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
    """The features of users and of circumstances that a recipe uses.

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
            f"query.features: {', '.join(missing)}: no feature of users or of circumstances in {dataset.path} that a query can use; "
            f"there are: {', '.join(names) or 'none'}"
        )
    users, contexts = (
        tuple(feature for feature in features if feature.name in config.features) for features in usable
    )
    return users, contexts


def _encoded(encoding: FeatureEncoding, table: pa.Table) -> tuple[Tensor, Tensor]:
    """Codes (int32) and numbers of the rows of a table; of none where nothing is encoded."""
    rows = table.num_rows if encoding.columns else 0
    codes = np.zeros((rows, encoding.num_slots), dtype=np.int32)
    numbers = np.zeros((rows, encoding.num_numbers), dtype=np.float32)
    for start in range(0, rows, _ENCODED_AT_ONCE):
        part = encoding.encode(table.slice(start, _ENCODED_AT_ONCE))
        place = slice(start, start + len(part.codes_NS))
        codes[place], numbers[place] = part.codes_NS, part.numbers_NF
    return torch.from_numpy(codes), torch.from_numpy(numbers)
