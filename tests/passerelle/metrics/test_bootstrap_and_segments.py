"""Bootstrap intervals against a loop over draws and against theory; segments by history length by hand.

Shape legend: Q users, M values of a user.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.errors import UserError
from passerelle.metrics import bootstrap
from passerelle.metrics.bootstrap import intervals, resampled_means
from passerelle.metrics.segments import length_segments


def test_means_are_of_users_drawn_with_replacement() -> None:
    """The same draws, taken one at a time from a generator in the same state."""
    values_QM = np.random.default_rng(1).normal(size=(7, 2))
    drawn = np.random.default_rng(5).integers(7, size=(20, 7))
    expected = [[np.mean([values_QM[user, column] for user in draw]) for column in (0, 1)] for draw in drawn]
    np.testing.assert_allclose(resampled_means(values_QM, np.random.default_rng(5), 20), expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values_QM = np.random.default_rng(1).normal(size=(8, 3))
    whole = resampled_means(values_QM, np.random.default_rng(5), 25)
    sizes = []
    real = np.bincount

    def bincount(drawn: np.ndarray, minlength: int) -> np.ndarray:
        sizes.append(len(drawn))
        return real(drawn, minlength=minlength)

    monkeypatch.setattr(bootstrap, "_CHUNK_DRAWS", 8 * 4)
    monkeypatch.setattr(np, "bincount", bincount)
    np.testing.assert_allclose(resampled_means(values_QM, np.random.default_rng(5), 25), whole)
    assert sizes == [32] * 6 + [8]


def test_ends_are_percentiles() -> None:
    values_QM = np.random.default_rng(2).random((50, 2))
    means_SM = np.sort(resampled_means(values_QM, np.random.default_rng(0), 201), axis=0)
    (first, second) = intervals(values_QM, np.random.default_rng(0), num_resamples=201, confidence=0.9)
    assert (first.low, first.high) == pytest.approx(
        (means_SM[10, 0], means_SM[190, 0])
    )  # 5 % and 95 % of 200 steps
    assert (second.mean, second.low, second.high) == pytest.approx(
        (values_QM[:, 1].mean(), means_SM[10, 1], means_SM[190, 1])
    )


def test_width_is_that_of_the_normal_approximation() -> None:
    values_QM = np.random.default_rng(3).normal(loc=2.0, scale=3.0, size=(2000, 1))
    (interval,) = intervals(values_QM, np.random.default_rng(0))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 3.0 / 2000**0.5, rel=0.1)
    assert interval.low < interval.mean < interval.high
    (narrow,) = intervals(values_QM, np.random.default_rng(0), confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * 3.0 / 2000**0.5, rel=0.15)


def test_95_percent_intervals_cover_the_mean() -> None:
    generator = np.random.default_rng(4)
    values_QM = (generator.random((200, 300)) < 0.3).astype(
        np.float64
    )  # 300 experiments of 200 users whose chance is 0.3
    held = [
        interval.low <= 0.3 <= interval.high
        for interval in intervals(values_QM, generator, num_resamples=400)
    ]
    assert 0.90 < np.mean(held) < 0.985


def test_a_paired_difference_has_a_narrower_interval() -> None:
    """One model is better by 0.01 for everybody, which the spread between users hides unless users are
    paired.
    """
    one_QM = np.random.default_rng(5).random((300, 2))
    other_QM = one_QM - np.array([0.01, 0.0])
    better, same = intervals(one_QM - other_QM, np.random.default_rng(0), num_resamples=100)
    assert (better.mean, better.low, better.high) == pytest.approx((0.01, 0.01, 0.01))
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    alone = intervals(one_QM, np.random.default_rng(0), num_resamples=100)[0]
    assert alone.high - alone.low > 0.05
    backwards = intervals(other_QM - one_QM, np.random.default_rng(0), num_resamples=100)[0]
    assert backwards.mean == pytest.approx(-0.01)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30), st.sets(st.integers(1, 14), min_size=1, max_size=4)
)
def test_every_user_is_in_the_one_segment_of_its_length(lengths: list[int], edges: set[int]) -> None:
    cuts = tuple(sorted(edges))
    for segments in (length_segments(np.array(lengths), cuts), length_segments(np.array(lengths))):
        members = [segment.members.tolist() for segment in segments]
        assert sorted(user for users in members for user in users) == list(range(len(lengths)))
        assert all(members)
        assert [(segment.shortest, segment.longest) for segment in segments] == [
            (min(lengths[user] for user in users), max(lengths[user] for user in users)) for users in members
        ]
        assert all(one.longest < other.shortest for one, other in pairwise(segments))
    for segment in length_segments(np.array(lengths), cuts):
        assert (
            len(
                {
                    sum(length >= cut for cut in cuts)
                    for length in range(segment.shortest, segment.longest + 1)
                }
            )
            == 1
        )


def test_terciles_by_hand() -> None:
    assert [segment.members.tolist() for segment in length_segments(np.array([9, 1, 5, 3, 7, 2]))] == [
        [1, 5],
        [2, 3],
        [0, 4],
    ]
    assert [segment.name for segment in length_segments(np.array([4, 4, 4, 4]))] == ["4-4 events"]
    assert length_segments(np.empty(0, dtype=np.int64)) == []


@pytest.mark.parametrize("edges", [(0, 5), (5, 5), (9, 5), ()])
def test_edges_that_do_not_rise_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="lengths of history must rise"):
        length_segments(np.array([1, 2]), edges)
