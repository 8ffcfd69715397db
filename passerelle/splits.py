"""Which events of a user are history, validation and test, by rule or by file; time order
is stable, ties keep file order.

Shape legend: E events, U users, U1 = U + 1, Q evaluated users, Q1 = Q + 1, G targets.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from passerelle.arrays import BoolArray, Int64Array, IntArray
from passerelle.config import Config, refuse_idle
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.files import sha256_of
from passerelle.ragged import gather_ragged
from passerelle.split_file import held_out_counts

Part = Literal["validation", "test"]

MIN_EVENTS_LEAVE_ONE_OUT = 3


class SplitConfig(Config):
    """How a dataset is split into train, validation and test."""

    rule: Literal["leave_one_out", "global_time", "file"] = "leave_one_out"
    """`leave_one_out`: each user's last event is the test, the one before it the validation.
    `global_time`: two dates for everybody.
    `file`: as `split.file` says.
    """
    file: Path | None = None
    """`file`: a table of `user_id`, `validation_events` and `test_events`: how many of a user's newest events
    are test, and how many before them validation (.csv, .parquet or .arrow).
    """
    file_sha256: str | None = None
    """`file`: digest the file must have.
    Training fills it in, so that a run is measured on the split that it was trained with.
    """
    validation_start: datetime | None = None
    """`global_time`: first instant of validation; without it, the instant after `1 - validation_fraction -
    test_fraction` of the events.
    """
    test_start: datetime | None = None
    """`global_time`: first instant of test; without it, the instant after `1 - test_fraction` of the events.
    """
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    """`global_time` without dates: share of all events in validation."""
    test_fraction: float = Field(default=0.05, gt=0, lt=1)
    """`global_time` without dates: share of all events in test."""
    event_types: tuple[str, ...] = ()
    """Event types of the targets of validation and test, such as bookings; all, if absent.
    Then only items of such events count as seen, and `leave_one_out` holds out a user's last two of them,
    with whatever lies between them.
    """

    @model_validator(mode="after")
    def _file_and_rule_agree(self) -> "SplitConfig":
        if (self.rule == "file") != (self.file is not None):
            raise ValueError(
                f"rule = {self.rule!r} and file = {str(self.file)!r}: rule = 'file' needs a file, and only "
                "it has one"
            )
        return self

    @model_validator(mode="after")
    def _has_no_idle_option(self, info: ValidationInfo) -> "SplitConfig":
        dated = self.rule == "global_time"
        dates = (self.validation_start, self.test_start)
        refuse_idle(
            self,
            info,
            {
                "file_sha256": (self.file is not None, "file"),
                "validation_start": (dated, "rule = 'global_time'"),
                "test_start": (dated, "rule = 'global_time'"),
                "validation_fraction": (
                    dated and self.validation_start is None,
                    "rule = 'global_time', validation_start left out",
                ),
                "test_fraction": (dated and None in dates, "rule = 'global_time', one of the dates left out"),
            },
        )
        return self

    def pinned(self) -> "SplitConfig":
        """Returns the configuration with the absolute path and the digest of its file.

        Raises:
            UserError: there is no such file, or it holds something else than this split was pinned to.
        """
        if self.file is None:
            return self
        if not self.file.is_file():
            raise UserError(f"split.file = {str(self.file)!r}: there is no such file")
        digest = sha256_of(self.file)
        if self.file_sha256 not in (None, digest):
            raise UserError(
                f"{self.file}: not the split that the run was trained with: its digest is {digest}, not "
                f"{self.file_sha256}"
            )
        return self.model_copy(update={"file": self.file.resolve(), "file_sha256": digest})


@dataclass(frozen=True)
class Split:
    """End of each part in the event arrays: user u trains on `offsets[u] : train_end[u]`, and so on."""

    start_U: Int64Array
    train_end_U: Int64Array
    validation_end_U: Int64Array
    test_end_U: Int64Array
    is_target_E: BoolArray | None = None
    """Which events are targets of validation and test; None: all."""


@dataclass(frozen=True)
class EvaluationUsers:
    """Users of one part, with the positions of their histories and targets in the event arrays.

    History of the q-th user is `history_start_Q[q] : history_end_Q[q]`, targets are among `history_end_Q[q] :
    target_end_Q[q]`.
    """

    user_rows_Q: Int64Array
    history_start_Q: Int64Array
    history_end_Q: Int64Array
    target_end_Q: Int64Array
    is_target_E: BoolArray | None = None
    """Which events may be targets; None: all."""

    def __len__(self) -> int:
        return len(self.user_rows_Q)

    def take(self, selection: IntArray | slice) -> "EvaluationUsers":
        """Returns some of the users."""
        return EvaluationUsers(
            self.user_rows_Q[selection],
            self.history_start_Q[selection],
            self.history_end_Q[selection],
            self.target_end_Q[selection],
            self.is_target_E,
        )

    def targets(self) -> tuple[Int64Array, Int64Array]:
        """Returns the positions of all targets, user by user, and the offsets [Q + 1] between users."""
        return self._targets_among(self.history_end_Q, self.target_end_Q)

    def seen(self) -> tuple[Int64Array, Int64Array]:
        """Returns the positions of earlier events that could be targets, whose items are
        not recommended again; likewise.
        """
        return self._targets_among(self.history_start_Q, self.history_end_Q)

    def _targets_among(self, start_Q: Int64Array, end_Q: Int64Array) -> tuple[Int64Array, Int64Array]:
        positions_G, offsets_Q1 = gather_ragged(start_Q, end_Q)
        if self.is_target_E is None:
            return positions_G, offsets_Q1
        kept_G = self.is_target_E[positions_G]
        return positions_G[kept_G], np.concatenate([[0], np.cumsum(kept_G)])[offsets_Q1]


def make_split(dataset: Dataset, config: SplitConfig) -> Split:
    """Split every user's events by the rule.

    Raises:
        UserError: the rule leaves training or a part empty, or a split file is not what it should be.
    """
    start_U, end_U = dataset.offsets_U1[:-1], dataset.offsets_U1[1:]
    is_target_E = dataset.is_of_type(config.event_types, "split.event_types") if config.event_types else None
    if config.rule == "leave_one_out" and is_target_E is not None:
        split = _leave_one_target_out(start_U, end_U, is_target_E)
    elif config.rule == "leave_one_out":
        long_enough_U = end_U - start_U >= MIN_EVENTS_LEAVE_ONE_OUT
        split = Split(start_U, end_U - 2 * long_enough_U, end_U - long_enough_U, end_U)
    elif config.rule == "file":
        file = config.pinned().file
        assert file is not None
        validation_U, test_U = held_out_counts(file, dataset)
        split = Split(start_U, end_U - test_U - validation_U, end_U - test_U, end_U)
    else:
        validation_ms, test_ms = _cuts_ms(dataset.timestamps_ms_E, config)
        split = Split(
            start_U, _events_before(dataset, validation_ms), _events_before(dataset, test_ms), end_U
        )
    split = replace(split, is_target_E=is_target_E)
    for part in ("validation", "test"):
        if not len(evaluation_users(split, part)):
            kind = f" ({', '.join(config.event_types)})" if config.event_types else ""
            raise UserError(
                f"split {config.rule}: no user of the {dataset.num_users} has both history and a {part} "
                f"event{kind}"
            )
    return split


def _leave_one_target_out(start_U: Int64Array, end_U: Int64Array, is_target_E: BoolArray) -> Split:
    """Hold out the last two targets of users who have events before them;
    other users are for training alone.
    """
    positions_T = np.flatnonzero(is_target_E)
    before_E1 = np.concatenate([[0], np.cumsum(is_target_E)])
    before_end_U = before_E1[end_U]
    two_U = before_end_U - before_E1[start_U] >= 2
    second_last_U, last_U = (
        np.append(positions_T, 0)[np.where(two_U, before_end_U - back, -1)] for back in (2, 1)
    )
    held_out_U = two_U & (second_last_U > start_U)
    train_end_U, validation_end_U, test_end_U = (
        np.where(held_out_U, held_U, end_U) for held_U in (second_last_U, last_U, last_U + 1)
    )
    return Split(start_U, train_end_U, validation_end_U, test_end_U)


def evaluation_users(split: Split, part: Part) -> EvaluationUsers:
    """Returns the users with at least one target in `part` and at least one event before it."""
    history_end_U = split.train_end_U if part == "validation" else split.validation_end_U
    target_end_U = split.validation_end_U if part == "validation" else split.test_end_U
    rows_Q = np.flatnonzero((target_end_U > history_end_U) & (history_end_U > split.start_U))
    users = EvaluationUsers(
        rows_Q, split.start_U[rows_Q], history_end_U[rows_Q], target_end_U[rows_Q], split.is_target_E
    )
    if split.is_target_E is None:
        return users
    return users.take(np.flatnonzero(np.diff(users.targets()[1])))


def _cuts_ms(timestamps_ms_E: Int64Array, config: SplitConfig) -> tuple[int, int]:
    test_ms = (
        _milliseconds(config.test_start)
        if config.test_start
        else _quantile(timestamps_ms_E, 1 - config.test_fraction)
    )
    validation_ms = (
        _milliseconds(config.validation_start)
        if config.validation_start
        else _quantile(timestamps_ms_E, 1 - config.test_fraction - config.validation_fraction)
    )
    if validation_ms >= test_ms:
        raise UserError(
            f"split global_time: validation starts at {validation_ms} ms, not before test at {test_ms} ms"
        )
    return validation_ms, test_ms


def _milliseconds(time: datetime) -> int:
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _quantile(timestamps_ms_E: Int64Array, share: float) -> int:
    position = min(len(timestamps_ms_E) - 1, max(0, int(share * len(timestamps_ms_E))))
    return int(np.partition(timestamps_ms_E, position)[position])


def _events_before(dataset: Dataset, instant_ms: int) -> Int64Array:
    """Returns for each user the position of the first event at or after the instant."""
    before_E1 = np.concatenate([[0], np.cumsum(dataset.timestamps_ms_E < instant_ms)])
    return np.asarray(
        dataset.offsets_U1[:-1] + before_E1[dataset.offsets_U1[1:]] - before_E1[dataset.offsets_U1[:-1]]
    )
