"""Nearest items in space and in time, by columns of items and of offers, against a loop over all of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.arrays import BoolArray
from passerelle.dataset import FeatureColumn
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue import catalogue as catalogue_module
from serving.catalogue import strides
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.catalogue.offers import read_offers
from serving.schemas.filters import Equals
from tests.support.filters import great_circle_km

COUNT = 400
FEATURES = [
    FeatureColumn(name="kind", kind="categorical"),
    FeatureColumn(name="at", kind="timestamp"),
    FeatureColumn(name="where", kind="place"),
]
PLACE = pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())])
POINTS = [(48.85, 2.35), (0.0, 179.9), (-89.0, 10.0)]


def places(count: int, rng: np.random.Generator) -> list[dict[str, float] | None]:
    """All over the Earth, some in one town, some nowhere."""
    near = rng.random(count) < 0.5
    latitudes = np.where(near, 48.85 + 0.2 * rng.standard_normal(count), rng.uniform(-90, 90, count))
    longitudes = np.where(near, 2.35 + 0.2 * rng.standard_normal(count), rng.uniform(-180, 180, count))
    return [
        None if rng.random() < 0.1 else {"latitude": float(latitude), "longitude": float(longitude)}
        for latitude, longitude in zip(latitudes, longitudes, strict=True)
    ]


class World:
    """A catalogue, and its values as lists."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        kinds = [("a", "b", None)[number] for number in rng.integers(3, size=COUNT)]
        times = [None if rng.random() < 0.1 else int(one) for one in rng.integers(40, size=COUNT)]
        self.items = pa.table(
            {
                "item_id": np.arange(COUNT),
                "kind": kinds,
                "at": pa.array(times, pa.int64()),
                "where": pa.array(places(COUNT, rng), PLACE),
            }
        )
        owners = np.sort(rng.integers(COUNT, size=2 * COUNT))
        self.offers = pa.table(
            {
                "offer_id": [str(number) for number in range(2 * COUNT)],
                "item_id": owners,
                "kind": [("a", "b")[number] for number in rng.integers(2, size=2 * COUNT)],
                "at": pa.array(rng.integers(40, size=2 * COUNT), pa.timestamp("ms")),
                "where": pa.array(places(2 * COUNT, rng), PLACE),
            }
        )
        pyarrow.parquet.write_table(self.offers, folder / "offers.parquet")
        table = read_offers(
            folder / "offers.parquet",
            IdMap(self.items.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"),
        )
        self.catalogue = Catalogue(Columns(self.items, FEATURES, offset=FIRST_ITEM_ROW), table)

    def values(self, name: str, only: str | None) -> list[tuple[int, object]]:
        """Row and value of every item or offer."""
        bare = name.removeprefix("offer.")
        rows = (self.offers if bare != name else self.items).to_pylist()
        found = []
        for row in rows:
            value = row[bare]
            if value is not None and hasattr(value, "timestamp"):
                value = round(value.timestamp() * 1000)
            if only is None or row["kind"] == only:
                found.append((row["item_id"] + FIRST_ITEM_ROW, value))
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(params=[0, 100_000], ids=["by radius", "all at once"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "_MAX_FULL_DISTANCES", request.param)
    monkeypatch.setattr(strides, "_FIRST_STRIDE", 3)


def smallest(values: list[tuple[int, float]], allowed_R: BoolArray, k: int) -> list[tuple[int, float]]:
    best: dict[int, float] = {}
    for row, value in values:
        if allowed_R[row]:
            best[row] = min(value, best.get(row, np.inf))
    return sorted(best.items(), key=lambda one: (one[1], one[0]))[:k]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["where", "offer.where"])
@pytest.mark.parametrize("only", [None, "a"])
@pytest.mark.parametrize("k", [1, 7, 1000])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_nearest_matches_a_loop(world: World, name: str, only: str | None, k: int, share: float) -> None:
    column = "offer.kind" if name.startswith("offer.") else "kind"
    eligible = world.catalogue.eligible(
        [] if only is None else [Equals(op="equals", column=column, value=only)]
    )
    allowed_R = eligible.rows_R & (np.random.default_rng(1).random(len(eligible.rows_R)) < share)
    for point in POINTS:
        rows_K, distances_K = world.catalogue.nearest(name, point, k, allowed_R, eligible.listings_G)
        everything = [
            (row, great_circle_km(point, (place["latitude"], place["longitude"])))  # type: ignore[index]
            for row, place in world.values(name, only)
            if place is not None
        ]
        expected = smallest(everything, allowed_R, k)
        assert rows_K.tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(distances_K, [value for _, value in expected], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["at", "offer.at"])
@pytest.mark.parametrize("only", [None, "b"])
@pytest.mark.parametrize("k", [1, 7, 1000])
@pytest.mark.parametrize("now", [-1, 0, 17, 39, 50])
@pytest.mark.parametrize("ahead", [True, False])
def test_nearest_in_time_matches_a_loop(
    world: World, name: str, only: str | None, k: int, now: int, ahead: bool
) -> None:
    column = "offer.kind" if name.startswith("offer.") else "kind"
    eligible = world.catalogue.eligible(
        [] if only is None else [Equals(op="equals", column=column, value=only)]
    )
    allowed_R = eligible.rows_R & (np.random.default_rng(2).random(len(eligible.rows_R)) < 0.5)
    rows_K, aways_K = world.catalogue.nearest_in_time(
        name, now, k, allowed_R, eligible.listings_G, ahead=ahead
    )
    aways = [
        (row, (at - now) if ahead else (now - at)) for row, at in world.values(name, only) if at is not None
    ]  # type: ignore[operator]
    expected = smallest([(row, away) for row, away in aways if away >= 0], allowed_R, k)
    assert list(zip(rows_K.tolist(), aways_K.tolist(), strict=True)) == expected
