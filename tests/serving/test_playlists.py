"""Playlists, sources, experiments and cold users through all stages, with networks in this process."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.config import ServingConfig, load_serving_config
from serving.experiments import assigned, variant_of
from serving.recommender import Recommender
from serving.schemas.recommend import Context, Place, RecommendRequest, SimilarRequest
from serving.stages.retrieval import Retrieval
from serving.stages.types import Query, RequestTime
from tests.support.offers import NOW_MS, PARIS
from tests.support.playlists import EVERY_SOURCE, ask, config_of, ids, recommender_with, source


@pytest.fixture(scope="module")
def every_source(bundle: Bundle, offers: Path) -> Recommender:
    """A playlist for each source alone, and one of all."""
    playlists: dict[str, Any] = {
        kind: {"sources": [source(kind)], "cold_sources": [source(kind)]} for kind in EVERY_SOURCE
    }
    playlists["all"] = {"sources": [source(kind, candidates=20) for kind in EVERY_SOURCE]}
    return recommender_with(bundle, config_of(offers, playlists=playlists))


def test_each_source_finds_its_items(bundle: Bundle, every_source: Recommender) -> None:
    paris = {"place": {"latitude": PARIS[0], "longitude": PARIS[1]}}
    position_of = {
        item_id: position for position, item_id in enumerate(bundle.items.column("item_id").to_pylist())
    }

    def found(kind: str) -> list[int]:
        answer = ask(every_source, playlist=kind, k=5, context=paris)
        assert all(
            item.sources[0].name == answer.fallback.split("+")[0] for item in answer.items if answer.fallback
        )
        return [position_of[item_id] for item_id in ids(answer)]

    sold = [position for position in range(300) if position % 7]
    assert found("near") == sold[:5]
    assert found("soon") == [position for position in sold if position >= 150][:5]
    assert found("new") == [position for position in reversed(sold) if position <= 150][:5]
    assert found("popular") == list(np.argsort(-bundle.counts_R[FIRST_ITEM_ROW:], kind="stable")[:5])


def test_items_name_every_source_that_found_them(every_source: Recommender) -> None:
    paris = {"place": {"latitude": PARIS[0], "longitude": PARIS[1]}}
    answer = ask(every_source, playlist="all", user_id=1003, k=60, context=paris)
    names = [{one.name for one in item.sources} for item in answer.items]
    assert answer.fallback is None and set().union(*names) == {
        "personal",
        "similar",
        "popular",
        "trending",
        "new",
        "near",
        "soon",
    }
    assert any(len(one) > 1 for one in names) and len(set(ids(answer))) == 60


def test_similar_starts_from_the_items_of_the_request(every_source: Recommender) -> None:
    answer = ask(every_source, playlist="similar", similar_to=[17, 27], k=5)
    direct = asyncio.run(every_source.similar(SimilarRequest(item_ids=(17, 27), k=5)))
    assert ids(answer) == ids(direct) and answer.fallback == "similar"
    alone = ids(asyncio.run(every_source.similar(SimilarRequest(item_id=17, k=5))))
    assert alone != ids(direct)


def test_items_carry_their_nearest_or_cheapest_offer(bundle: Bundle, offers: Path) -> None:
    nearest = recommender_with(bundle, config_of(offers, offers={"best_by": "nearest"}))
    cheapest = recommender_with(bundle, config_of(offers))
    paris = {"place": {"latitude": PARIS[0], "longitude": PARIS[1]}}
    sold = [item for item in ask(nearest, user_id=1003, k=20, context=paris).items if item.offer]
    assert sold and all(
        item.offer and str(item.offer.offer_id).endswith("paris") and item.offer.distance_km < 40
        for item in sold
    )
    sold = [item for item in ask(cheapest, user_id=1003, k=20, context=paris).items if item.offer]
    assert sold and all(item.offer and str(item.offer.offer_id).endswith("lyon") for item in sold)
    dear = [{"op": "range", "column": "offer.price", "min": 41}]
    answer = ask(cheapest, user_id=1003, k=20, filters=dear)
    assert answer.items and all(item.offer and item.offer.values["price"] >= 41 for item in answer.items)


def test_unknown_users_with_a_place_get_popular_items_nearby(bundle: Bundle, offers: Path) -> None:
    near = source("popular", column="offer.place", radius_km=5)
    recommender = recommender_with(bundle, config_of(offers, cold_start={"sources": [near]}))
    around = {"place": {"latitude": PARIS[0] + 0.1, "longitude": PARIS[1]}}
    answer = ask(recommender, k=3, context=around)
    positions = [bundle.items.column("item_id").to_pylist().index(item_id) for item_id in ids(answer)]
    counts = bundle.counts_R[FIRST_ITEM_ROW:]
    near_by = [position for position in range(300) if position % 7 and abs(position / 1000 - 0.1) * 111.2 < 5]
    assert (
        positions == sorted(near_by, key=lambda position: -counts[position])[:3]
        and answer.fallback == "popular"
    )
    assert ask(recommender, k=3).fallback == "popular"
    many = ask(recommender, k=150, context=around)
    assert many.fallback == "popular" and len(many.items) == 150


def test_cold_start_by_number_of_events(bundle: Bundle) -> None:
    rule = {"cold_start": {"min_events_of": {"view": 6}, "min_request_items": 3}}
    recommender = recommender_with(bundle, validate(ServingConfig, rule, "test"))
    for user_row, user_id in enumerate(bundle.reference().user_ids()[:10]):
        count = len(bundle.history(bundle.user_ids.row(user_id)).item_rows_L)
        assert (ask(recommender, user_id=user_id).fallback is None) == (count >= 6), user_row
    assert (
        ask(recommender, history=[7, 17]).fallback == "popular"
        and ask(recommender, history=[7, 17, 27]).fallback is None
    )
    with pytest.raises(
        UserError, match=r"cold_start.min_events_of: no 'buy' among the events of this model: view"
    ):
        recommender_with(
            bundle, validate(ServingConfig, {"cold_start": {"min_events_of": {"buy": 1}}}, "test")
        )


def test_variants_are_sticky_and_drawn_by_weight(bundle: Bundle) -> None:
    variants = [{"name": "a", "weight": 3, "playlist": "default"}, {"name": "b", "playlist": "other"}]
    values = {
        "playlists": {"other": {"size": 4}},
        "experiments": {"e": {"variants": variants}, "f": {"playlist": "other", "variants": variants}},
    }
    config = validate(ServingConfig, values, "test")
    drawn = [variant_of("e", config.experiments["e"], str(user)).name for user in range(4000)]
    assert drawn == [variant_of("e", config.experiments["e"], str(user)).name for user in range(4000)]
    assert 0.22 < drawn.count("b") / 4000 < 0.28
    other = [variant_of("f", config.experiments["f"], str(user)).name for user in range(4000)]
    both = sum(one == two == "b" for one, two in zip(drawn, other, strict=True))
    # A sixteenth of the users where the experiments are independent.
    assert 0.04 < both / 4000 < 0.085
    recommender = recommender_with(bundle, config)
    for user_id in (1000, 1001, 1002, 1003):
        answer = ask(recommender, user_id=user_id)
        assert (
            answer.experiment == "e"
            and answer.variant == variant_of("e", config.experiments["e"], str(user_id)).name
        )
        assert len(answer.items) == (4 if answer.variant == "b" else 10)
    assert {ask(recommender, user_id=user_id).variant for user_id in (7, "7", "07")} == {
        variant_of("e", config.experiments["e"], "7").name
    }
    assert (
        ask(recommender, user_id=1000, variant="b").playlist == "other" and ask(recommender).variant is None
    )
    with pytest.raises(UserError, match="experiment 'e' has no 'c'; it has a, b"):
        ask(recommender, variant="c")
    with pytest.raises(UserError, match="playlist: there is no 'x'; there are default, other"):
        ask(recommender, playlist="x")
    assert assigned(ServingConfig(), RecommendRequest(user_id=3), "3").experiment is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[playlists.a]\nsizes = 3", "playlists.a.sizes: unknown key; did you mean size"),
        ('[[playlists.a.sources]]\nkind = "near"', "playlists.a.sources.0.column: Field required"),
        (
            '[[playlists.a.sources]]\nkind = "personal"\ncolumn = "x"',
            "sources.0.column: goes with kind = ",
        ),
        (
            '[[cold_start.sources]]\nkind = "trending"\nhalf_life_hours = 3',
            "cold_start.sources.0.half_life_hours: unknown key; did you mean half_life_days?",
        ),
        (
            '[[cold_start.sources]]\nkind = "popular"\ncolumn = "x"',
            "column has no effect on a source 'popular' without radius_km",
        ),
        (
            '[[cold_start.sources]]\nkind = "popular"\nradius_km = 3',
            "a source 'popular' with radius_km needs a column",
        ),
        (
            '[[cold_start.sources]]\nkind = "best"',
            "cold_start.sources.0.kind: Input should be 'personal', ",
        ),
        (
            '[experiments.e]\nplaylist = "b"\nvariants = [{name = "x", playlist = "default"}]',
            "no playlist 'b'; there are default",
        ),
        ('[playlists.a.ordering]\ndiversify = "mixing"', "diversify = 'mixing' and [mixing] go together"),
        ('[offers]\nfile = "o.parquet"\nbest_by = "nearest"', "best_by = 'nearest' needs a place_column"),
        (
            "[playlists.a.ordering]\npins = [{item_id = 1, position = 1}, {item_id = 2, position = 1}]",
            "two pins share an item or a position",
        ),
    ],
)
def test_invalid_serving_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_serving_config(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rules": {"price_column": "cost"}},
            r"rules.price_column: column 'cost' is not known; of numeric there are year",
        ),
        (
            {"rules": {"price_column": "offer.price"}},
            r"rules.price_column: 'offer.price' is a column of offers, and there are none",
        ),
        (
            {"playlists": {"p": {"sources": [source("near")]}}},
            r"playlists.p: source 'near': 'offer.place' is a column of offers",
        ),
        (
            {"playlists": {"p": {"ordering": {"margin_column": "kind"}}}},
            r"p.ordering.margin_column: column 'kind' is categorical",
        ),
        (
            {"playlists": {"p": {"ordering": {"pins": [{"item_id": 8, "position": 1}]}}}},
            "pinned item 8 is not in the catalogue",
        ),
        (
            {"playlists": {"p": {"filters": [{"op": "present", "column": "x"}]}}},
            "filters.0: column 'x' is not an item column",
        ),
    ],
)
def test_unknown_columns_and_items_are_refused_at_the_start(
    bundle: Bundle, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recommender_with(bundle, validate(ServingConfig, values, "test"))


def test_paths_are_relative_to_the_serving_file(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(
        '[rules]\nblock_list = "b.txt"\n[offers]\nfile = "o.parquet"\n[log]\nfile = "/x/log"\n',
        encoding="utf-8",
    )
    config = load_serving_config(path)
    assert config.rules.block_list == tmp_path / "b.txt" and config.log.file == Path("/x/log")
    assert config.offers is not None and config.offers.file == tmp_path / "o.parquet"


def test_near_needs_a_place_but_no_query(bundle: Bundle, offers: Path) -> None:
    """Without a place `near` finds nothing, and popular items fill the answer up."""
    recommender = recommender_with(bundle, config_of(offers, cold_start={"sources": [source("near")]}))
    assert ask(recommender, k=4).fallback == "popular"
    nowhere = recommender_with(bundle, config_of(offers, playlists={"p": {"sources": [source("near")]}}))
    answer = ask(nowhere, user_id=1003, k=4, playlist="p")
    assert answer.fallback == "popular" and len(answer.items) == 4
    somewhere = Context(place=Place(latitude=0, longitude=0), timestamp_ms=NOW_MS)
    found = asyncio.run(
        Retrieval(bundle, config_of(offers, cold_start={"sources": [source("near")]})).run(
            RecommendRequest(context=somewhere, k=4),
            Query(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), None, 0, 0.0),
            RequestTime.read(NOW_MS),
        )
    )
    assert found.fallback == "near" and len(found.rows_C) == 50, (
        "the order has as much to choose from as the ranker's"
    )
