"""Two towers all the way: trained on features, exported, through the gate with a real Triton
and Serve, and with items added.

Shape legend: L events of a history.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from passerelle.bundle import Bundle, open_bundle
from passerelle.dataset import Dataset
from passerelle.ids import ITEM_ID
from passerelle.splits import EvaluationUsers
from ray_cluster.publishing import Publication, publish
from serving.schemas.recommend import Context, RecommendRequest
from serving.stages.lookup import EmbeddingLookup
from serving.stages.types import RequestTime
from tests.support.datasets import small_recipe
from tests.support.inference import OnnxInference
from training.data.evaluation_batches import EvaluationBatches
from training.export.bundle import export
from training.export.new_items import add_items
from training.ranker import train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run

BOOKINGS = ("split.event_types=['purchase']", "objective.event_types=['view']")
TOLD = (
    "query.features=all",
    "query.time_features=['hour','weekday']",
    "model.event_types=true",
    "items.kind=tower",
    "loss.temperature=0.1",
)


@pytest.fixture(scope="module")
def tower_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    path = tmp_path_factory.mktemp("towers") / "run"
    train_in_process(
        "two_tower",
        dataset,
        small_recipe("objective.kind=causal", "training.max_epochs=3", *TOLD, *BOOKINGS),
        path,
    )
    train_ranker(load_run(path))
    return load_run(path)


@pytest.fixture(scope="module")
def tower_bundle(tower_run: OpenRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(tower_run, tmp_path_factory.mktemp("tower_bundle") / "bundle")


def looked_up(bundle: Bundle, timestamp_ms: int, **request: Any) -> np.ndarray:
    """The query vector of a request."""
    query = asyncio.run(
        EmbeddingLookup(bundle, OnnxInference(bundle), 1).run(
            RecommendRequest(**request), RequestTime.read(timestamp_ms)
        )
    )
    assert query.query_D is not None
    return query.query_D


def test_a_request_with_all_features_equals_training(tower_run: OpenRun, tower_bundle: Bundle) -> None:
    """History, event types, times and features of each test event are sent as those of an unknown user."""
    dataset, users = tower_run.dataset, tower_run.users("test").take(slice(None, None, 12))
    expected = {}
    for batch in EvaluationBatches(dataset, users, max_history=12, token_budget=512):
        query_BD = tower_run.model.encode_histories(batch.histories).detach().numpy()
        expected |= dict(zip(batch.positions_B.tolist(), query_BD, strict=True))
    names = dataset.manifest.event_types
    for position in range(len(users)):
        user_row, start, end = (
            int(values[position])
            for values in (users.user_rows_Q, users.history_start_Q, users.history_end_Q)
        )
        features = dataset.users.drop_columns("user_id").slice(user_row, 1).to_pylist()[0]
        request = {
            "history": dataset.item_ids().ids(dataset.item_rows_E[start:end]),
            "history_timestamps_ms": dataset.timestamps_ms_E[start:end].tolist(),
            "history_event_types": [names[kind] for kind in dataset.event_types_E[start:end]],
            "user_features": features,
        }
        told = Context(features=dataset.contexts.slice(end, 1).to_pylist()[0])
        now_ms = int(dataset.timestamps_ms_E[end])
        query_D = looked_up(tower_bundle, now_ms, context=told, **request)
        np.testing.assert_allclose(query_D, expected[position], atol=1e-5)
        known_id = {"user_id": dataset.users["user_id"][user_row].as_py()}
        as_known = {name: value for name, value in request.items() if name != "user_features"}
        np.testing.assert_allclose(
            looked_up(tower_bundle, now_ms, context=told, **known_id, **as_known), query_D, atol=1e-6
        )
        for changed in ("user_features", "history_event_types"):
            without = {name: value for name, value in request.items() if name != changed}
            assert not np.allclose(
                looked_up(tower_bundle, now_ms, context=told, **without), query_D, atol=1e-4
            ), changed
        if told.features and told.features["device"]:
            assert not np.allclose(looked_up(tower_bundle, now_ms, **request), query_D, atol=1e-4)


def test_an_unknown_context_assumes_nothing(tower_run: OpenRun) -> None:
    """The data have no context for the time at which the reference users of an export ask.

    Nor has a request that gives none.
    """
    dataset = tower_run.dataset
    rows_P, end_P = np.arange(4), dataset.offsets_U1[1:5]
    (batch,) = EvaluationBatches(
        dataset,
        EvaluationUsers(rows_P, dataset.offsets_U1[:4], end_P, end_P),
        max_history=12,
        token_budget=512,
    )
    assert batch.histories.request_events_B.tolist() == [-1] * 4


def test_viewed_items_may_be_recommended(tower_run: OpenRun, tower_bundle: Bundle) -> None:
    dataset = tower_run.dataset
    for user_row in range(5):
        events = slice(*dataset.offsets_U1[user_row : user_row + 2])
        bought = set(dataset.item_rows_E[events][dataset.event_types_E[events] == 1].tolist())
        request = RecommendRequest(user_id=dataset.users["user_id"][user_row].as_py())
        query = asyncio.run(
            EmbeddingLookup(tower_bundle, OnnxInference(tower_bundle), 1).run(request, RequestTime.read(None))
        )
        assert set(query.seen_S.tolist()) == bought < set(dataset.item_rows_E[events].tolist())


@pytest.mark.slow
def test_two_towers_pass_the_parity_gate(tower_bundle: Bundle, tmp_path: Path) -> None:
    """With user features of known users; and a bundle with more items beside it, under
    the same configuration of Triton.
    """
    first = publish(tower_bundle.path, tmp_path / "models")
    assert holds(first) and first.version == 1
    rows = tower_bundle.items.slice(0, 5)
    ids = pa.array([2**41 + number for number in range(5)])
    added = add_items(
        tower_bundle.path, rows.set_column(rows.column_names.index(ITEM_ID), ITEM_ID, ids), tmp_path / "grown"
    ).bundle
    second = publish(added.path, tmp_path / "models")
    assert holds(second) and second.version == 2 and open_bundle(added.path).manifest.num_items == 125


def holds(publication: Publication) -> bool:
    """Whether each of the reference users was given the ten that training would give."""
    return all(
        figures["identical_top_10"] == figures["users"] == 64 for figures in publication.parity.values()
    )
