"""Features of queries: by hand, in training, and of unknown users.

Shape legend: N queries.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from passerelle.calendar_time import HOUR_MS
from passerelle.dataset import Dataset, DatasetContents, FeatureColumn, write_dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import make_split
from tests.support.datasets import START_MS, small_recipe
from training.data.batches import EpochBatches
from training.data.evaluation_batches import UNKNOWN
from training.evaluation.evaluate import evaluate
from training.model.factory import build_training_model
from training.model.query_features import encode_query_features
from training.model.towers import QueryFeatureBatch
from training.model_config import QueryConfig
from training.runs.fit import train_in_process
from training.runs.open_run import load_run


def test_query_features_by_hand(dataset: Dataset) -> None:
    split = make_split(dataset, small_recipe().split)
    features = encode_query_features(dataset, split, QueryConfig(features=("country", "device")))
    # Countries go None, FR, DE, IT from user to user, devices mobile, desktop, None.
    # Each is frequent enough for a code of its own.
    encoding = features.encoding
    assert sorted(encoding.user.columns[0].values) == ["DE", "FR", "IT"] and sorted(
        encoding.context.columns[0].values
    ) == [
        "desktop",
        "mobile",
    ]
    assert encoding.widths() == {"user_codes": 1, "user_numbers": 1, "context_codes": 1, "context_numbers": 1}
    query_features = features(torch.tensor([0, 1, 5, UNKNOWN]), torch.tensor([2, 0, UNKNOWN, 3]))
    codes_N = query_features.user_codes[:, 0].tolist()
    assert (
        codes_N[0] == codes_N[3] == 0
        and codes_N[1] == codes_N[2] == encoding.user.columns[0].values.index("FR") + 2
    )
    assert query_features.user_numbers.tolist() == [[1.0], [1.0], [1.0], [0.0]], (
        "a user without a country is known, an unknown user is not"
    )
    mobile = encoding.context.columns[0].values.index("mobile") + 2
    assert query_features.context_codes.tolist() == [
        [0],
        [mobile],
        [0],
        [mobile],
    ] and query_features.context_numbers.tolist() == [[1.0], [1.0], [0.0], [1.0]]


def test_features_without_columns_are_zero(dataset: Dataset) -> None:
    features = encode_query_features(
        dataset, make_split(dataset, small_recipe().split), QueryConfig(time_features=("hour",))
    )
    query_features = features(torch.tensor([0, 239, UNKNOWN]), torch.tensor([5, UNKNOWN, 0]))
    assert not any(values.any() for values in query_features) and all(
        values.shape == (3, 1) for values in query_features
    )


def test_all_features_of_a_dataset_without_any(dataset: Dataset) -> None:
    config = small_recipe("query.features=all")
    bare = replace(
        dataset, manifest=dataset.manifest.model_copy(update={"user_features": (), "context_features": ()})
    )
    split = make_split(dataset, config.split)
    assert build_training_model(bare, split, config, total_steps=1).query_tower is None
    assert build_training_model(dataset, split, config, total_steps=1).query_tower is not None


def test_all_features_exclude_those_from_events(dataset: Dataset) -> None:
    """Such features hold information from validation and test, and have to be named explicitly."""
    country, age = dataset.manifest.user_features
    made_of_events = (country.model_copy(update={"from_events": True}), age)
    made = replace(dataset, manifest=dataset.manifest.model_copy(update={"user_features": made_of_events}))
    split = make_split(dataset, small_recipe().split)
    for features, expected in (("all", ["age"]), (("country",), ["country"])):
        encoding = encode_query_features(
            made, split, QueryConfig.model_validate({"features": features})
        ).encoding
        assert [column.name for column in encoding.user.columns] == expected


@pytest.mark.parametrize("features", ["['age']", "['device']", "all"])
def test_every_parameter_of_a_step_has_a_gradient(dataset: Dataset, features: str) -> None:
    """DistributedDataParallel fails on others, also where no feature is categorical."""
    config = small_recipe(
        "items.kind=tower", "items.features=['year']", "objective.kind=causal", f"query.features={features}"
    )
    split = make_split(dataset, config.split)
    model = build_training_model(dataset, split, config, total_steps=1)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    model.training_step(next(iter(EpochBatches(dataset, split, config, epoch=0))), 0).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_encoding_is_fitted_to_training_events(dataset: Dataset, tmp_path: Path) -> None:
    """A device of the last two events of users, which are held out, has no code."""
    devices = np.full(len(dataset.item_rows_E), "old")
    devices[np.concatenate([dataset.offsets_U1[1:] - 1, dataset.offsets_U1[1:] - 2])] = "new"
    again = rewritten(dataset, tmp_path / "again", devices)
    encoding = encode_query_features(
        again, make_split(again, small_recipe().split), QueryConfig(features=("device",))
    ).encoding
    assert encoding.context.columns[0].values == ("old",)


def rewritten(dataset: Dataset, path: Path, devices: np.ndarray) -> Dataset:
    """The same events on other devices."""
    description = dataset.manifest.model_dump(
        include={"name", "event_types", "user_features", "item_features", "context_features", "title"}
    )
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=dataset.item_rows_E,
            timestamps_ms_E=dataset.timestamps_ms_E,
            event_types_E=dataset.event_types_E,
            weights_E=dataset.weights_E,
            offsets_U1=dataset.offsets_U1,
            users=dataset.users,
            items=dataset.items,
            contexts=pa.table({"device": pa.array(devices.tolist()).dictionary_encode()}),
            description={**description, "config": {}, "quality": {}},
        ),
    )


@pytest.mark.parametrize("name", ["colour", "title"])
def test_unusable_query_features_are_rejected(dataset: Dataset, name: str) -> None:
    split = make_split(dataset, small_recipe().split)
    with pytest.raises(
        UserError, match=f"query.features: {name}: no feature of users .* there are: country, age, device"
    ):
        encode_query_features(dataset, split, QueryConfig(features=("age", name)))


def test_batch_holds_users_and_target_events(dataset: Dataset) -> None:
    split = make_split(dataset, small_recipe().split)
    for batch in EpochBatches(dataset, split, small_recipe("model.max_history=3"), epoch=0):
        assert dataset.item_rows_E[batch.target_events_M].tolist() == batch.target_rows_M.tolist()
        window_T = np.repeat(np.arange(len(batch.user_rows_B)), batch.offsets_B1.diff())
        user_M = batch.user_rows_B.numpy()[window_T[batch.target_positions_M]]
        assert (dataset.offsets_U1[user_M] <= batch.target_events_M.numpy()).all()
        assert (batch.target_events_M.numpy() < dataset.offsets_U1[user_M + 1]).all()


def test_training_leaves_out_features_of_some_windows(dataset: Dataset) -> None:
    """User and context features are dropped independently, for whole windows, in other ones each step."""
    config = small_recipe("query.features=all", "query.dropout=0.4", "objective.kind=causal")
    split = make_split(dataset, config.split)
    model = build_training_model(dataset, split, config, total_steps=1)
    users, contexts = [], []
    for batch in EpochBatches(dataset, split, config, epoch=0):
        window_T = torch.repeat_interleave(torch.arange(len(batch.user_rows_B)), batch.offsets_B1.diff())
        row_M = window_T[batch.target_positions_M]
        query_features = model._target_features(batch, row_M)
        assert query_features is not None
        for values, found in (
            (query_features.user_numbers, users),
            (query_features.context_numbers, contexts),
        ):
            known_M = values[:, 0]
            known_B = torch.zeros(len(batch.user_rows_B)).index_put_((row_M,), known_M)
            assert torch.equal(known_B[row_M], known_M), "a window is known in part"
            found += known_B.tolist()
    assert 0.5 < np.mean(users) < 0.7 and 0.5 < np.mean(contexts) < 0.7
    assert users != contexts


def test_left_out_features_are_zero() -> None:
    given = QueryFeatureBatch(
        torch.tensor([[3], [4]]), torch.ones(2, 2), torch.tensor([[5], [6]]), torch.ones(2, 1)
    )
    kept = given.where(torch.tensor([True, False]), torch.tensor([False, True]))
    assert [values.tolist() for values in kept] == [[[3], [0]], [[1, 1], [0, 0]], [[0], [6]], [[0], [1]]]


def planted_query_features(path: Path) -> Dataset:
    """Items of eight groups; the next one depends on the user's country, the device and the hour alone."""
    rng = np.random.default_rng(0)
    num_users, length = 300, 8
    country_U, device_E = rng.integers(2, size=num_users), rng.integers(2, size=num_users * length)
    night_E = rng.integers(2, size=num_users * length)
    group_E = np.repeat(country_U, length) * 4 + device_E * 2 + night_E
    day_E = np.tile(np.arange(length), num_users)
    midnight_ms = START_MS // (24 * HOUR_MS) * 24 * HOUR_MS
    names = ["one", "two"]
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=FIRST_ITEM_ROW + group_E * 20 + rng.integers(20, size=len(group_E)),
            timestamps_ms_E=midnight_ms + day_E * 24 * HOUR_MS + night_E * 12 * HOUR_MS,
            event_types_E=np.zeros(len(group_E)),
            weights_E=np.ones(len(group_E)),
            offsets_U1=np.arange(num_users + 1) * length,
            users=pa.table(
                {"user_id": np.arange(num_users), "country": [names[country] for country in country_U]}
            ),
            items=pa.table({"item_id": np.arange(160)}),
            contexts=pa.table(
                {"device": pa.array([names[device] for device in device_E]).dictionary_encode()}
            ),
            description={
                "name": "planted",
                "event_types": ("view",),
                "user_features": (FeatureColumn(name="country", kind="categorical"),),
                "context_features": (FeatureColumn(name="device", kind="categorical"),),
                "item_features": (),
                "title": None,
                "config": {},
                "quality": {},
            },
        ),
    )


def test_query_features_improve_recall(tmp_path: Path) -> None:
    """Random recall@10 is 1/16 over 160 items, and 1/2 within the right group of 20."""
    dataset = planted_query_features(tmp_path / "dataset")
    recalls, usual = (
        {},
        (
            "objective.kind=causal",
            "model.num_blocks=1",
            "training.max_epochs=12",
            "optimizer.learning_rate=0.02",
        ),
    )
    for name, overrides in (
        ("nothing", ()),
        ("everything", ("query.features=all", "query.time_features=['hour']", "query.dropout=0")),
    ):
        train_in_process("two_tower", dataset, small_recipe(*usual, *overrides), tmp_path / name)
        recalls[name] = evaluate(load_run(tmp_path / name), "test", ks=(10,))["model"]["recall@10"]
    assert recalls["nothing"] < 0.25 and recalls["everything"] > 0.35, recalls
