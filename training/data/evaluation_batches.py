"""Batches of histories to be continued, with what is relevant and what must not be ranked.

Shape legend: B users of a batch, B1 = B + 1, L padded length, Q users in all, Q1 = Q + 1, G relevant items, S
seen items of all users of the batch, X those that are not to be ranked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from passerelle.arrays import Int64Array
from passerelle.dataset import Dataset
from passerelle.ragged import gather_ragged
from passerelle.splits import EvaluationUsers
from training.data.padding import pad_right_aligned, scatter
from training.data.windows import groups_within_budget

UNKNOWN = -1
"""The row of a user, or the position of an event, of which nothing is known."""
_MAX_SCORES = 2**27
"""Maximum of scores (users x catalogue) of a batch: half a gigabyte of float32; a baseline's, in float64,
are held four times as large."""


@dataclass
class Histories:
    """Histories of users before a request, right-aligned."""

    items_BL: Tensor
    """int64 item rows, at most `max_history` of them a user, 0 in the padding."""
    timestamps_ms_BL: Tensor
    """int64 time of each event, 0 in the padding."""
    request_timestamp_ms_B1: Tensor
    """int64 [B, 1] time of the request (`request_times_ms`)."""
    event_types_BL: Tensor
    """int64 event type of each event, 0 in the padding."""
    user_rows_B: Tensor
    """int64 user row of each history; -1 for an unknown user."""
    request_events_B: Tensor
    """int64 position of the event whose context features the request has; -1 for none."""


@dataclass
class EvaluationBatch:
    """Some users, with the items that are relevant to them."""

    histories: Histories
    seen_row_S: Tensor
    """int64 user (position in the batch) of each item of the whole history."""
    seen_item_S: Tensor
    """int64 item row of each item of the whole history."""
    excluded_row_X: Tensor
    """int64 user of each item that is not to be ranked: those of the history that could be targets
    (`EvaluationUsers.seen`)."""
    excluded_item_X: Tensor
    """int64 item row of each."""
    relevant_rows_G: Int64Array
    """int64 item rows, of each user without repetition (`relevant_items`)."""
    relevant_offsets_B1: Int64Array
    positions_B: Int64Array
    """Position of each user in the `EvaluationUsers` the batches were made from."""
    is_repeat: bool = False
    """True for a batch that repeats an earlier one, so that every rank has as many."""

    @property
    def num_relevant_B(self) -> Int64Array:
        return np.diff(self.relevant_offsets_B1)


def request_events(users: EvaluationUsers) -> Int64Array:
    """Returns the event [Q] whose context features each request has: the first target, or -1 without a
    target.
    """
    positions_G, offsets_Q1 = users.targets()
    found_Q = offsets_Q1[1:] > offsets_Q1[:-1]
    return np.where(found_Q, np.append(positions_G, UNKNOWN)[offsets_Q1[:-1]], UNKNOWN)


def request_times_ms(dataset: Dataset, users: EvaluationUsers) -> Int64Array:
    """Returns the time [Q] of each request: that of the first target, or else of the last event itself."""
    events_Q = request_events(users)
    return np.asarray(
        dataset.timestamps_ms_E[np.where(events_Q == UNKNOWN, users.history_end_Q - 1, events_Q)]
    )


def relevant_items(dataset: Dataset, users: EvaluationUsers) -> tuple[Int64Array, Int64Array]:
    """Returns the distinct item rows of each user's targets, concatenated, and the offsets [Q1] between
    users.
    """
    positions_G, offsets_Q1 = users.targets()
    user_G = np.repeat(np.arange(len(users)), np.diff(offsets_Q1))
    user_G, rows_G = np.divmod(
        np.unique(user_G * dataset.num_rows + dataset.item_rows_E[positions_G]), dataset.num_rows
    )
    return rows_G, np.searchsorted(user_G, np.arange(len(users) + 1))


class EvaluationBatches:
    """All users of a part, grouped by length to a token budget; ranks take every `world_size`-th user,
    longest history first.

    Each has as many batches as the others, and at the end repeats its last where it has too few.
    """

    def __init__(
        self,
        dataset: Dataset,
        users: EvaluationUsers,
        *,
        max_history: int,
        token_budget: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._dataset, self._users, self._max_history = dataset, users, max_history
        lengths_Q = np.minimum(users.history_end_Q - users.history_start_Q, max_history)
        order_Q = np.argsort(-lengths_Q, kind="stable")
        max_users = max(1, _MAX_SCORES // dataset.num_rows)
        # the mask is a token, too
        lengths_Q = lengths_Q + 1
        groups = [
            groups_within_budget(order_Q[other::world_size], lengths_Q, token_budget, max_users)
            for other in range(world_size)
        ]
        self._groups, self._num_batches = groups[rank], max(map(len, groups))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for positions_B in self._groups:
            yield self._batch(positions_B)
        for _ in range(self._num_batches - len(self._groups)):
            yield replace(self._batch(self._groups[-1]), is_repeat=True)

    def _batch(self, positions_B: Int64Array) -> EvaluationBatch:
        users, rows_E = self._users.take(positions_B), self._dataset.item_rows_E
        start_B = np.maximum(users.history_start_Q, users.history_end_Q - self._max_history)
        history_T, history_offsets_B1 = gather_ragged(start_B, users.history_end_Q)
        seen_S, seen_offsets_B1 = gather_ragged(users.history_start_Q, users.history_end_Q)
        excluded_X, excluded_offsets_B1 = users.seen()
        relevant_rows_G, relevant_offsets_B1 = relevant_items(self._dataset, users)
        items_T = torch.from_numpy(rows_E[history_T].astype(np.int64))
        items_BL, row_T, column_T = pad_right_aligned(items_T, torch.from_numpy(history_offsets_B1))
        return EvaluationBatch(
            histories=Histories(
                items_BL,
                scatter(
                    torch.from_numpy(self._dataset.timestamps_ms_E[history_T]), row_T, column_T, items_BL
                ),
                torch.from_numpy(request_times_ms(self._dataset, users))[:, None],
                scatter(
                    torch.from_numpy(self._dataset.event_types_E[history_T].astype(np.int64)),
                    row_T,
                    column_T,
                    items_BL,
                ),
                torch.from_numpy(users.user_rows_Q),
                torch.from_numpy(request_events(users)),
            ),
            seen_row_S=torch.from_numpy(np.repeat(np.arange(len(positions_B)), np.diff(seen_offsets_B1))),
            seen_item_S=torch.from_numpy(rows_E[seen_S].astype(np.int64)),
            excluded_row_X=torch.from_numpy(
                np.repeat(np.arange(len(positions_B)), np.diff(excluded_offsets_B1))
            ),
            excluded_item_X=torch.from_numpy(rows_E[excluded_X].astype(np.int64)),
            relevant_rows_G=relevant_rows_G,
            relevant_offsets_B1=relevant_offsets_B1,
            positions_B=positions_B,
        )
