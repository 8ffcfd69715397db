"""The presets on the real files, where these are; the reference file of the SASRec and BERT4Rec papers is
reproduced event by event.
"""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from passerelle.dataset import Dataset
from passerelle.prepare import load_prepare_config, prepare, preset_names
from passerelle.prepare.sources import local_source
from passerelle.splits import SplitConfig, evaluation_users, make_split


def source_of(preset: str) -> Path:
    """The preset's files, found as the command finds them but never downloaded."""
    found = local_source(load_prepare_config(preset))
    if found is None:
        pytest.skip(f"{preset} is not on this machine: set PASSERELLE_DATA to a folder that holds it")
    return found


@pytest.fixture(scope="module")
def movielens_1m(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(
        load_prepare_config("movielens-1m"),
        source_of("movielens-1m"),
        tmp_path_factory.mktemp("movielens") / "dataset",
    )


def renumbering(path: Path) -> dict[int, int]:
    """Paper's number -> MovieLens id."""
    return dict(np.loadtxt(path, dtype=np.int64).tolist())


def test_movielens_1m_equals_the_papers_file(movielens_1m: Dataset) -> None:
    folder = source_of("movielens-1m")
    reference, users, items = (
        folder / name
        for name in ("ml-1m_sasrec.txt.gz", "sas_to_original_users.txt", "sas_to_original_items.txt")
    )
    if not all(path.is_file() for path in (reference, users, items)):
        pytest.skip(f"{folder} lacks {reference.name} or its maps")
    original_user, original_item = renumbering(users), renumbering(items)
    expected: dict[int, list[int]] = {}
    with gzip.open(reference, "rt") as lines:
        for line in lines:
            user, item = map(int, line.split())
            expected.setdefault(original_user[user], []).append(original_item[item])
    user_ids = movielens_1m.users["user_id"].to_pylist()
    item_ids = movielens_1m.item_ids()
    offsets = movielens_1m.offsets_U1
    assert user_ids == sorted(expected)
    assert movielens_1m.items["item_id"].to_pylist() == sorted(
        {item for history in expected.values() for item in history}
    )
    different = [
        user
        for row, user in enumerate(user_ids)
        if item_ids.ids(movielens_1m.item_rows_E[offsets[row] : offsets[row + 1]]) != expected[user]
    ]
    assert different == []
    assert (movielens_1m.num_users, movielens_1m.num_items, len(movielens_1m.item_rows_E)) == (
        6040,
        3416,
        999_611,
    )


def test_movielens_1m_report_and_features(movielens_1m: Dataset) -> None:
    quality = movielens_1m.manifest.quality
    assert quality["rows_read"] == 1_000_209
    assert {reason: count for reason, count in quality["dropped"].items() if count} == {
        "item_below_minimum": 598
    }
    assert set(quality["missing_values"].values()) == {0}
    assert quality["longest_history"] == np.diff(movielens_1m.offsets_U1).max()
    first = movielens_1m.items.slice(0, 1).to_pylist()[0]
    assert first == {
        "item_id": 1,
        "title": "Toy Story (1995)",
        "genres": ["Animation", "Children's", "Comedy"],
        "year": 1995.0,
    }
    assert movielens_1m.users.slice(0, 1).to_pylist() == [
        {"user_id": 1, "gender": "F", "age": "1", "occupation": "10"}
    ]
    years = movielens_1m.items["year"].to_numpy()
    assert (years.min(), years.max()) == (1919, 2000)
    genres = set(movielens_1m.items["genres"].combine_chunks().flatten().to_pylist())
    assert len(genres) == 18


def test_movielens_1m_splits(movielens_1m: Dataset) -> None:
    split = make_split(movielens_1m, SplitConfig())
    assert len(evaluation_users(split, "test")) == 6040
    assert int((split.train_end_U - split.start_U).sum()) == 999_611 - 2 * 6040


@pytest.mark.parametrize(
    ("preset", "counts", "item"),
    [
        (
            "movielens-100k",
            (943, 1349, 99_287),
            {
                "item_id": 1,
                "title": "Toy Story (1995)",
                "year": 1995.0,
                "genres": ["Animation", "Children's", "Comedy"],
            },
        ),
        (
            "movielens-latest-small",
            (671, 3496, 90_072),
            {
                "item_id": 1,
                "title": "Toy Story (1995)",
                "genres": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"],
                "year": 1995.0,
            },
        ),
        (
            "online-retail",
            (5585, 4225, 764_520),
            {"item_id": "10002", "description": "INFLATABLE POLITICAL GLOBE", "price": 0.85},
        ),
    ],
)
def test_other_presets(
    preset: str, counts: tuple[int, int, int], item: dict[str, object], tmp_path: Path
) -> None:
    dataset = prepare(load_prepare_config(preset), source_of(preset), tmp_path / "dataset")
    quality = dataset.manifest.quality
    if preset == "movielens-latest-small" and quality["rows_read"] != 100_004:
        pytest.skip("another edition of movielens-latest-small")
    assert (dataset.num_users, dataset.num_items, len(dataset.item_rows_E)) == counts
    assert quality["rows_read"] == counts[2] + sum(quality["dropped"].values())
    assert dataset.items.slice(0, 1).to_pylist() == [item]
    users_E = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets_U1))
    assert np.bincount(users_E).min() >= 5
    assert np.bincount(dataset.item_rows_E)[2:].min() >= 5
    backwards_E = (np.diff(dataset.timestamps_ms_E) < 0) & (np.diff(users_E) == 0)
    assert not backwards_E.any()


def test_globo_news_keeps_the_context_features_of_clicks(tmp_path: Path) -> None:
    dataset = prepare(load_prepare_config("globo-news"), source_of("globo-news"), tmp_path / "dataset")
    assert (dataset.num_users, dataset.num_items, len(dataset.item_rows_E)) == (221_379, 41_367, 2_747_674)
    assert dataset.contexts.num_rows == 2_747_674 and dataset.contexts.column_names == [
        "environment",
        "device",
        "os",
        "country",
        "region",
        "referrer",
    ]
    clicks = pyarrow.parquet.read_table(
        source_of("globo-news") / "clicks.parquet", filters=[("user_id", "==", 0)]
    ).sort_by("click_timestamp")
    mine = dataset.contexts.slice(0, int(dataset.offsets_U1[1])).to_pydict()
    assert mine["device"] == [str(value) for value in clicks["click_deviceGroup"].to_pylist()]
    assert mine["referrer"] == [str(value) for value in clicks["click_referrer_type"].to_pylist()]


def test_presets_say_where_their_files_come_from() -> None:
    assert preset_names() == [
        "globo-news",
        "movielens-100k",
        "movielens-1m",
        "movielens-latest-small",
        "online-retail",
    ]
    for name in preset_names():
        config = load_prepare_config(name)
        assert config.name == name
        assert config.source is not None and config.source.page.startswith("https://")
