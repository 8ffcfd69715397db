"""Eligibility rules under every source, and the block list, which may change while it is served."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from passerelle.config import validate
from passerelle.errors import UserError
from serving.config import ServingConfig
from serving.schemas.recommend import Context, SimilarRequest
from tests.support.offers import PARIS
from tests.support.playlists import EVERY_SOURCE, ask, config_of, ids, recommender_with, source
from tests.support.waiting import eventually


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_eligibility_rules_hold_for_every_source(
    bundle: Bundle, offers: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """No source, fallback, pin or similar item is blocked, too expensive, sold out or for another age."""
    all_ids = bundle.items.column("item_id").to_pylist()
    blocked = data.draw(st.sets(st.sampled_from(all_ids), max_size=200))
    block_list = tmp_path / "blocked.txt"
    block_list.write_text("\n".join(map(str, sorted(blocked))) + "\nno id\n", encoding="utf-8")
    kind = data.draw(st.sampled_from(EVERY_SOURCE))
    pinned = data.draw(st.sampled_from(all_ids))
    pin = {"item_id": pinned, "position": 1}
    config = config_of(
        offers,
        rules={
            "min_age_column": "offer.min_age",
            "price_column": "offer.price",
            "stock_column": "offer.stock",
            "block_list": str(block_list),
        },
        playlists={
            "p": {"sources": [source(kind)], "cold_sources": [source(kind)], "ordering": {"pins": [pin]}}
        },
        offers={"required": True},
    )
    recommender = recommender_with(bundle, config)
    credit = data.draw(st.none() | st.integers(0, 60))
    age = data.draw(st.none() | st.sampled_from([12, 18]))
    user_id = data.draw(st.sampled_from([None, 1003, 4]))
    context: dict[str, Any] = {
        "credit": credit,
        "age": age,
        "place": {"latitude": PARIS[0], "longitude": PARIS[1]},
    }
    answer = ask(recommender, playlist="p", user_id=user_id, k=30, context=context)
    similar = asyncio.run(
        recommender.similar(SimilarRequest(item_id=17, k=30, context=Context(age=age, credit=credit)))
    )
    for item in (*answer.items, *similar.items):
        position = all_ids.index(item.item_id)
        assert item.item_id not in blocked and position % 7 and position % 5 and item.offer is not None
        assert (age == 18) or position % 11
        assert credit is None or item.offer.values["price"] <= credit
    if pinned not in blocked and pinned in ids(answer):
        assert answer.items[0].item_id == pinned


def test_block_list_is_reloaded_after_a_change(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block_list = tmp_path / "blocked.txt"
    block_list.touch()
    recommender = recommender_with(
        bundle, validate(ServingConfig, {"rules": {"block_list": str(block_list)}}, "test")
    )
    first = ids(ask(recommender, k=3))
    block_list.write_text(f"{first[0]}\n{first[2]}\n", encoding="utf-8")
    eventually(lambda: first[0] not in ids(ask(recommender, k=3)), "the block list is not read again")
    assert first[1] == ids(ask(recommender, k=3))[0] and first[2] not in ids(ask(recommender, k=3))
    block_list.write_bytes(b"\xff\xfe")  # half-written, perhaps: the blocked items stay blocked
    eventually(lambda: caplog.records, "the block list is not read again")
    assert first[0] not in ids(ask(recommender, k=3))


def test_unreadable_block_list_is_refused_at_the_start(bundle: Bundle, tmp_path: Path) -> None:
    for block_list, said in (
        (tmp_path / "blocked.txt", "no such block list: make an empty file"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            recommender_with(
                bundle, validate(ServingConfig, {"rules": {"block_list": str(block_list)}}, "test")
            )


def test_block_list_with_byte_order_mark_and_crlf(bundle: Bundle, tmp_path: Path) -> None:
    plain = ids(ask(recommender_with(bundle, ServingConfig()), k=2))
    block_list = tmp_path / "blocked.txt"
    block_list.write_bytes(b"\xef\xbb\xbf" + f"{plain[0]}\r\n".encode())
    recommender = recommender_with(
        bundle, validate(ServingConfig, {"rules": {"block_list": str(block_list)}}, "test")
    )
    assert ids(ask(recommender, k=1)) == plain[1:]


def test_item_pinned_twice_is_refused(bundle: Bundle) -> None:
    pins = [{"item_id": 57, "position": 1}, {"item_id": "57", "position": 3}]
    with pytest.raises(UserError, match="an item is pinned twice"):
        recommender_with(
            bundle, validate(ServingConfig, {"playlists": {"p": {"ordering": {"pins": pins}}}}, "test")
        )


def test_similar_items_ignore_the_ordering_of_playlists(bundle: Bundle) -> None:
    capped = validate(
        ServingConfig,
        {"playlists": {"default": {"ordering": {"caps": [{"column": "kind", "max_items": 1}]}}}},
        "test",
    )
    request = SimilarRequest(item_id=17, k=20)
    plain, same = (
        asyncio.run(recommender_with(bundle, config).similar(request)) for config in (ServingConfig(), capped)
    )
    assert ids(plain) == ids(same) and len(ids(same)) == 20
