"""Ordering and rules that depend on the shown offer: caps, mixing, margins, past offers and NaN prices."""

import itertools
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.bundle import Bundle
from passerelle.calendar_time import HOUR_MS
from passerelle.errors import UserError
from tests.support.playlists import ask, config_with, ids, recommender_with


def offers_of(bundle: Bundle, folder: Path, **columns: list[Any]) -> Path:
    """Returns one offer for each of the first items."""
    item_ids = bundle.items.column("item_id").to_pylist()[: len(next(iter(columns.values())))]
    table = pa.table({"offer_id": [f"o{item_id}" for item_id in item_ids], "item_id": item_ids, **columns})
    pyarrow.parquet.write_table(table, folder / "some.parquet")
    return folder / "some.parquet"


def test_caps_mixing_and_margin_use_the_shown_offers(bundle: Bundle, tmp_path: Path) -> None:
    sellers = ["a"] * 20 + ["b"] * 10 + [None] * 5
    file = offers_of(bundle, tmp_path, seller=sellers, margin=[float(number) for number in range(35)])
    seller_of = dict(zip(bundle.items.column("item_id").to_pylist(), sellers, strict=False))
    playlists = {
        "caps": {"ordering": {"caps": [{"column": "offer.seller", "max_items": 2}]}},
        "margin": {"ordering": {"margin_column": "offer.margin"}},
        "mixing": {
            "ordering": {
                "diversify": "mixing",
                "mixing": {"column": "offer.seller", "window": 2, "max_items": 1},
            }
        },
    }
    config = config_with(offers={"file": str(file), "required": True}, playlists=playlists)
    recommender = recommender_with(bundle, config)
    found = [seller_of[item_id] for item_id in ids(ask(recommender, playlist="caps", k=35))]
    assert sorted(map(str, found)) == sorted(["a", "a", "b", "b", *["None"] * 5])
    shown = ask(recommender, playlist="margin", k=35, debug=True).items
    assert all(item.why and item.offer and item.why.margin == item.offer.values["margin"] for item in shown)
    adjusted = [item.why.adjusted_score for item in shown if item.why]
    assert adjusted == sorted(adjusted, reverse=True)
    mixed = [seller_of[item_id] for item_id in ids(ask(recommender, playlist="mixing", k=10))]
    assert all(one != other or one is None for one, other in itertools.pairwise(mixed))
    wrong = {"p": {"ordering": {"caps": [{"column": "offer.shop", "max_items": 1}]}}}
    with pytest.raises(
        UserError,
        match=r"playlists.p.ordering.caps: column 'offer.shop' is not known; of categorical there are seller",
    ):
        recommender_with(bundle, config_with(offers={"file": str(file)}, playlists=wrong))


def test_past_offers_stay_excluded_whatever_time_is_given(bundle: Bundle, tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    ends = [now_ms + hours * HOUR_MS for hours in (-48, -1, 1, 48)] + [None]
    file = offers_of(bundle, tmp_path, ends=pa.array(ends, pa.timestamp("ms")))
    recommender = recommender_with(
        bundle, config_with(offers={"file": str(file), "required": True}, rules={"ends_column": "offer.ends"})
    )
    first = bundle.items.column("item_id").to_pylist()[:5]
    for asked_ms, open_ in ((now_ms, first[2:]), (0, first[2:]), (now_ms + 24 * HOUR_MS, first[3:])):
        assert set(ids(ask(recommender, context={"timestamp_ms": asked_ms}))) == set(open_)


def test_nan_price_is_no_price(bundle: Bundle, tmp_path: Path) -> None:
    prices = [10.0, 90.0, float("nan"), float("inf"), None]
    file = offers_of(bundle, tmp_path, price=prices)
    config = config_with(
        offers={"file": str(file), "required": True, "price_column": "price"},
        rules={"price_column": "offer.price"},
    )
    recommender = recommender_with(bundle, config)
    first = bundle.items.column("item_id").to_pylist()[:5]
    assert set(ids(ask(recommender, context={"credit": 50}))) == {first[0], *first[2:]}
    present = [{"op": "present", "column": "offer.price"}]
    assert set(ids(ask(recommender, filters=present))) == set(first[:2])
