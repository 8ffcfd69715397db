"""Nothing left of users, items, offers, candidates, events: an empty answer or one line, never a failure."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.bundle import Bundle
from serving.events.sqlite_store import SqliteEventStore
from serving.schemas.recommend import SimilarRequest
from tests.support.offers import write_offers
from tests.support.playlists import EVERY_SOURCE, ask, config_of, config_with, ids, recommender_with, source

NOBODY_MEETS = [{"op": "range", "column": "year", "min": 9999}]
EVERY_ORDERING: dict[str, dict[str, Any]] = {
    "plain": {},
    "mmr": {"diversify": "mmr"},
    "mixing": {"diversify": "mixing", "mixing": {"column": "kind"}},
    "boosts": {"boosts": [{"name": "b", "when": NOBODY_MEETS[0], "factor": 2.0}], "margin_column": "year"},
    "caps": {"caps": [{"column": "kind", "max_items": 1}]},
    "pins": {"pins": [{"item_id": 17, "position": 1}]},
}
PLACE = {"place": {"latitude": 48.86, "longitude": 2.35}}


@pytest.fixture(scope="module")
def offers(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_offers(bundle, tmp_path_factory.mktemp("offers") / "offers.parquet")


@pytest.mark.parametrize("ordering", EVERY_ORDERING)
@pytest.mark.parametrize("kind", EVERY_SOURCE)
def test_filters_that_leave_nothing_give_an_empty_answer(
    bundle: Bundle, offers: Path, kind: str, ordering: str
) -> None:
    playlist = {"sources": [source(kind)], "ordering": EVERY_ORDERING[ordering]}
    recommender = recommender_with(bundle, config_of(offers, playlists={"default": playlist}))
    for request in ({"user_id": 1003}, {"user_id": "999999"}, {"history": [17, 27]}, {}):
        answer = ask(recommender, filters=NOBODY_MEETS, debug=True, context=PLACE, **request)
        assert answer.items == () and answer.degraded == ()


@pytest.mark.parametrize("required", [True, False])
def test_a_file_of_no_offers_is_served(bundle: Bundle, offers: Path, tmp_path: Path, required: bool) -> None:
    none = tmp_path / "none.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(offers).slice(0, 0), none)
    sources = [source(kind) for kind in EVERY_SOURCE]
    config = config_of(none, playlists={"default": {"sources": sources}}, offers={"required": required})
    answer = ask(recommender_with(bundle, config), user_id=1003, context=PLACE)
    assert len(answer.items) == (0 if required else 10)
    assert all(item.offer is None for item in answer.items)


def test_offers_of_unknown_items_alone_are_none(bundle: Bundle, offers: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.parquet"
    table = pyarrow.parquet.read_table(offers)
    ids_ = pa.array(np.arange(10**6, 10**6 + len(table)))
    pyarrow.parquet.write_table(table.set_column(1, "item_id", ids_), foreign)
    answer = ask(recommender_with(bundle, config_of(foreign)), user_id=1003, context=PLACE)
    assert len(answer.items) == 10


def test_a_block_list_of_every_item_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("\n".join(str(item_id) for item_id in bundle.items["item_id"].to_pylist()))
    recommender = recommender_with(bundle, config_with(rules={"block_list": str(blocked)}))
    assert ids(ask(recommender, user_id=1003)) == ids(ask(recommender)) == []
    assert asyncio.run(recommender.similar(SimilarRequest(item_id=17))).items == ()


def test_a_user_who_has_seen_everything_gets_nothing(bundle: Bundle) -> None:
    everything = bundle.items["item_id"].to_pylist()
    recommender = recommender_with(bundle, config_with())
    assert ask(recommender, history=everything).items == ()
    assert len(ask(recommender, history=everything, exclude_seen=False).items) == 10


def test_histories_of_nothing_known_are_answered(bundle: Bundle, tmp_path: Path) -> None:
    store = SqliteEventStore(tmp_path / "events.sqlite")
    sources = {"playlists": {"default": {"sources": [{"kind": "trending"}, {"kind": "similar"}]}}}
    recommender = recommender_with(bundle, config_with(**sources))
    for request in ({"history": []}, {"history": [10**9]}, {"similar_to": [10**9]}, {"similar_to": []}):
        assert len(ask(recommender, **request).items) == 10
    asyncio.run(store.close())


def test_bundles_without_users_or_events_are_served(bundle: Bundle) -> None:
    silent = replace(
        bundle, counts_R=np.zeros_like(bundle.counts_R), recent_counts_R=np.zeros_like(bundle.recent_counts_R)
    )
    recommender = recommender_with(silent, config_with(cold_start={"sources": [{"kind": "trending"}]}))
    for request in ({"user_id": 1003}, {"user_id": 10**9}, {}):
        assert len(ask(recommender, **request).items) == 10
