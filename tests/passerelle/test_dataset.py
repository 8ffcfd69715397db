"""The dataset on disk, its Arrow files, and the splits of its events."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from passerelle.arrow import column, read_table, write_table
from passerelle.calendar_time import HOUR_MS
from passerelle.config import validate
from passerelle.dataset import Dataset, open_dataset
from passerelle.errors import UserError
from passerelle.splits import EvaluationUsers, Split, SplitConfig, evaluation_users, make_split
from tests.passerelle.conftest import MakeDataset, histories
from tests.support.files import flip_byte

EVENTS = [
    [(2, 0), (3, 1), (4, 1), (2, 9)],
    [(5, 3), (3, 4)],  # too short for leave-one-out: trains with all it has
    [(4, 2), (5, 5), (6, 8)],
]


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return make_dataset(EVENTS)


def test_round_trip(dataset: Dataset) -> None:
    again = open_dataset(dataset.path)
    assert (again.num_users, again.num_items, again.num_rows) == (3, 5, 7)
    assert again.manifest == dataset.manifest
    assert again.manifest.num_events == 9
    assert again.item_rows_E.tolist() == [2, 3, 4, 2, 5, 3, 4, 5, 6]
    assert again.timestamps_ms_E.tolist() == [0, 1, 1, 9, 3, 4, 2, 5, 8]
    assert again.offsets_U1.tolist() == [0, 4, 6, 9]
    assert histories(again) == {"u0": [100, 101, 102, 100], "u1": [103, 101], "u2": [102, 103, 104]}
    assert again.user_ids().row("u2") == 2
    assert again.item_ids().row(100) == 2
    types = (
        again.item_rows_E.dtype,
        again.timestamps_ms_E.dtype,
        again.event_types_E.dtype,
        again.weights_E.dtype,
        again.offsets_U1.dtype,
    )
    assert types == (np.int32, np.int64, np.uint8, np.float32, np.int64)
    with pytest.raises(ValueError, match="read-only"):
        again.item_rows_E[0] = 5


def test_fingerprint_is_of_the_content(make_dataset: MakeDataset) -> None:
    first = make_dataset(EVENTS).fingerprint()
    assert make_dataset(EVENTS).fingerprint() == first
    assert make_dataset([[(2, 0), (3, 1), (4, 1), (2, 8)], *EVENTS[1:]]).fingerprint() != first


def test_an_altered_file_is_found(dataset: Dataset) -> None:
    flip_byte(dataset.path / "interactions.arrow")
    with pytest.raises(
        UserError, match=r"interactions\.arrow: altered since it was written.*`passerelle prepare`$"
    ):
        open_dataset(dataset.path)


# Arrow files


def test_chunks_become_one(tmp_path: Path) -> None:
    table = pa.table({"x": pa.chunked_array([[1, 2], [3]], pa.int64())})
    write_table(tmp_path / "t.arrow", table)
    assert column(read_table(tmp_path / "t.arrow"), "x", np.int64).tolist() == [1, 2, 3]
    write_table(tmp_path / "empty.arrow", table.slice(0, 0))
    assert column(read_table(tmp_path / "empty.arrow"), "x", np.int64).tolist() == []


def test_unreadable_arrow_files(tmp_path: Path) -> None:
    for name, data in (("missing", None), ("text", b"not arrow at all, but long enough"), ("empty", b"")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: cannot be read as an Arrow file"):
            read_table(tmp_path / name)


def test_a_wrong_column_type_is_an_assertion(tmp_path: Path) -> None:
    write_table(tmp_path / "t.arrow", pa.table({"x": pa.array([1], pa.int32())}))
    with pytest.raises(AssertionError, match="int32"):
        column(read_table(tmp_path / "t.arrow"), "x", np.int64)


# Splits


def parts(split: Split) -> list[tuple[int, int, int, int]]:
    return list(
        zip(
            *(
                ends.tolist()
                for ends in (split.start_U, split.train_end_U, split.validation_end_U, split.test_end_U)
            ),
            strict=True,
        )
    )


def spans(users: EvaluationUsers) -> list[tuple[int, int, int, int]]:
    columns = (users.user_rows_Q, users.history_start_Q, users.history_end_Q, users.target_end_Q)
    return list(zip(*(values.tolist() for values in columns), strict=True))


def test_leave_one_out(dataset: Dataset) -> None:
    split = make_split(dataset, SplitConfig())
    assert parts(split) == [(0, 2, 3, 4), (4, 6, 6, 6), (6, 7, 8, 9)]
    assert spans(evaluation_users(split, "validation")) == [(0, 0, 2, 3), (2, 6, 7, 8)]
    assert spans(evaluation_users(split, "test")) == [(0, 0, 3, 4), (2, 6, 8, 9)]
    assert spans(evaluation_users(split, "test").take(np.array([1]))) == [(2, 6, 8, 9)]


def with_types(dataset: Dataset, codes: list[int]) -> Dataset:
    """The same events, clicks (0) and bookings (1)."""
    manifest = dataset.manifest.model_copy(update={"event_types": ("click", "booking")})
    return replace(dataset, manifest=manifest, event_types_E=np.array(codes, dtype=np.uint8))


def test_leave_one_booking_out(make_dataset: MakeDataset) -> None:
    """Clicks between the last two bookings are history of the test alone, clicks after the last are of no
    use.
    """
    users = [
        [(row, time) for time, row in enumerate(rows)]
        for rows in ([2, 3, 4, 5, 6, 7], [2, 3], [4, 2, 5], [5, 6, 4])
    ]
    dataset = with_types(make_dataset(users), [0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1])
    split = make_split(dataset, SplitConfig(event_types=("booking",)))
    assert parts(split) == [(0, 1, 4, 5), (6, 8, 8, 8), (8, 11, 11, 11), (11, 12, 13, 14)]
    validation, test = (evaluation_users(split, part) for part in ("validation", "test"))
    assert spans(validation) == [(0, 0, 1, 4), (3, 11, 12, 13)] and spans(test) == [
        (0, 0, 4, 5),
        (3, 11, 13, 14),
    ]
    assert [values.tolist() for values in validation.targets()] == [[1, 12], [0, 1, 2]]
    assert [values.tolist() for values in test.seen()] == [[1, 12], [0, 1, 2]], (
        "what was clicked may be booked"
    )
    both = make_split(dataset, SplitConfig(event_types=("click", "booking")))
    assert parts(both) == parts(make_split(dataset, SplitConfig()))


def test_bookings_of_a_period(make_dataset: MakeDataset) -> None:
    """Users without a booking in a part are not asked; of the others, clicks in it are no targets."""
    users = [[(2, 1), (3, 20), (4, 21), (5, 30), (6, 31)], [(2, 2), (3, 22), (4, 32)]]
    dataset = with_types(make_dataset(users), [1, 0, 1, 0, 1, 0, 0, 1])
    starts = [datetime.fromtimestamp(ms / 1000, UTC) for ms in (10, 25)]
    config = SplitConfig(
        rule="global_time", validation_start=starts[0], test_start=starts[1], event_types=("booking",)
    )
    split = make_split(dataset, config)
    assert spans(evaluation_users(split, "validation")) == [(0, 0, 1, 3)] and spans(
        evaluation_users(split, "test")
    ) == [
        (0, 0, 3, 5),
        (1, 5, 7, 8),
    ]
    assert [values.tolist() for values in evaluation_users(split, "test").targets()] == [[4, 7], [0, 1, 2]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("booked",), r"split.event_types: no 'booked' among the events of .*: click, booking"),
        (("booking",), r"no user of the 1 has both history and a validation event \(booking\)"),
    ],
)
def test_event_types_that_cannot_be_held_out(
    names: tuple[str, ...], message: str, make_dataset: MakeDataset
) -> None:
    dataset = with_types(make_dataset([[(2, 1), (3, 2), (4, 3)]]), [0, 0, 1])
    with pytest.raises(UserError, match=message):
        make_split(dataset, SplitConfig(event_types=names))


def test_global_time_with_dates(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([[(row, hour * HOUR_MS) for row, hour in history] for history in EVENTS])
    config = SplitConfig(
        rule="global_time",
        validation_start=datetime(1970, 1, 1, 4, tzinfo=UTC),
        test_start=datetime(1970, 1, 1, 8),
    )  # an instant without a zone is UTC
    split = make_split(dataset, config)
    assert parts(split) == [(0, 3, 3, 4), (4, 5, 6, 6), (6, 7, 8, 9)]
    assert spans(evaluation_users(split, "validation")) == [(1, 4, 5, 6), (2, 6, 7, 8)]
    assert spans(evaluation_users(split, "test")) == [(0, 0, 3, 4), (2, 6, 8, 9)]


def test_global_time_with_fractions(dataset: Dataset) -> None:
    # Sorted times are 0 1 1 2 3 4 5 8 9: test starts at position int(0.7 * 9) = 6, time 5;
    # validation at position int(0.6 * 9) = 5, time 4.
    split = make_split(dataset, SplitConfig(rule="global_time", validation_fraction=0.1, test_fraction=0.3))
    assert parts(split) == [(0, 3, 3, 4), (4, 5, 6, 6), (6, 7, 7, 9)]
    assert spans(evaluation_users(split, "validation")) == [(1, 4, 5, 6)]
    assert spans(evaluation_users(split, "test")) == [(0, 0, 3, 4), (2, 6, 7, 9)]


LATE = {"rule": "global_time", "validation_start": "1999-01-01T00:00:00", "test_start": "2000-01-01T00:00:00"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rule": "global_time", "test_start": "1960-01-01T00:00:00"},
            r"validation starts at \d+ ms, not before test at -\d+ ms",
        ),
        (LATE, r"no user of the 3 has both history and a validation event"),
    ],
)
def test_splits_with_an_empty_part(values: dict[str, str], message: str, dataset: Dataset) -> None:
    with pytest.raises(UserError, match=message):
        make_split(dataset, validate(SplitConfig, values, "split"))


def test_leave_one_out_of_short_histories(make_dataset: MakeDataset) -> None:
    with pytest.raises(
        UserError, match=r"split leave_one_out: no user of the 2 has both history and a validation event"
    ):
        make_split(make_dataset([[(2, 1), (3, 2)], [(2, 1)]]), SplitConfig())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rule", ["leave_one_out", "global_time"])
def test_splits_equal_a_reference_implementation(rule: str, seed: int, make_dataset: MakeDataset) -> None:
    generator = np.random.default_rng(seed)
    times = [sorted(generator.integers(0, 12, generator.integers(1, 6)).tolist()) for _ in range(8)] + [
        [1, 6, 10],
        [4, 5, 9],
    ]
    dataset = make_dataset([[(2, time) for time in history] for history in times])
    dates = {
        name: datetime.fromtimestamp(ms / 1000, UTC)
        for name, ms in (("validation_start", 5), ("test_start", 9))
    }
    split = make_split(
        dataset, validate(SplitConfig, {"rule": rule, **(dates if rule == "global_time" else {})}, "split")
    )

    def cut(history: list[int]) -> tuple[list[int], list[int], list[int]]:
        if rule == "leave_one_out":
            return (history[:-2], history[-2:-1], history[-1:]) if len(history) >= 3 else (history, [], [])
        return (
            [t for t in history if t < 5],
            [t for t in history if 5 <= t < 9],
            [t for t in history if t >= 9],
        )

    for part in ("validation", "test"):
        expected = []
        for user, (train, validation, test) in enumerate(map(cut, times)):
            history, targets = (train, validation) if part == "validation" else (train + validation, test)
            if history and targets:
                expected.append((user, history, targets))
        found = spans(evaluation_users(split, part))
        stored = dataset.timestamps_ms_E
        assert [
            (user, stored[start:middle].tolist(), stored[middle:end].tolist())
            for user, start, middle, end in found
        ] == expected
