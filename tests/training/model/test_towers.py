"""The candidate tower: features by hand, id dropout, and items without training events.

Shape legend: R item rows, D width.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from passerelle.dataset import Dataset, FeatureColumn
from passerelle.encoding import fit_encoding
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import make_split
from tests.support.datasets import small_recipe
from training.model.dropout import keep_mask
from training.model.factory import build_training_model, encode_item_features
from training.model.towers import FeatureTower
from training.model_config import ItemsConfig

TOWER = ("items.kind=tower", "objective.kind=causal", "loss.temperature=0.1")


def test_feature_tower_by_hand() -> None:
    """Columns are means of their values' vectors, without empty slots; two layers follow."""
    features = (
        FeatureColumn(name="brand", kind="categorical"),
        FeatureColumn(name="genres", kind="multi_categorical"),
    )
    table = pa.table({"brand": ["a", None], "genres": [["x", "y"], None]})
    encoding = fit_encoding(table, features, 1)
    tower = FeatureTower(encoding, 4, torch.Generator().manual_seed(0))
    encoded = encoding.encode(table)
    with torch.no_grad():
        tower.inner.bias.normal_(generator=torch.Generator().manual_seed(1))
        codes_VC, none = tower.codes_VC, torch.zeros(tower.codes_VC.shape[1])
        brand, x, y = (codes_VC[row] for row in encoded.codes_NS[0].tolist())
        inputs = [torch.cat([brand, (x + y) / 2, torch.ones(1)]), torch.cat([none, none, torch.ones(1)])]
        expected = [tower.out(F.gelu(tower.inner(row))) for row in inputs]
        found_ND = tower(torch.from_numpy(encoded.codes_NS), torch.from_numpy(encoded.numbers_NF))
    torch.testing.assert_close(found_ND, torch.stack(expected))


def test_keep_mask_keeps_a_share_by_seed() -> None:
    rows = torch.arange(100_000)
    keep = keep_mask(rows, 0.3, seed=5)
    assert 0.69 < keep.double().mean() < 0.71
    assert torch.equal(keep_mask(rows[77:99], 0.3, seed=5), keep[77:99]), (
        "a row's noise depends on the others"
    )
    assert 0.4 < (keep_mask(rows, 0.3, seed=6) != keep).double().mean() < 0.44, "another seed, the same noise"
    assert keep_mask(rows, 0.0, seed=5).all()


def without_events_of(dataset: Dataset, rows: list[int]) -> Dataset:
    """Returns the dataset without the events of some items."""
    keep_E = ~np.isin(dataset.item_rows_E, rows)
    kept_before = np.concatenate([[0], np.cumsum(keep_E)])
    arrays = ("item_rows_E", "timestamps_ms_E", "event_types_E", "weights_E")
    return replace(
        dataset,
        offsets_U1=kept_before[dataset.offsets_U1],
        **{name: getattr(dataset, name)[keep_E] for name in arrays},
    )


def test_new_items_have_vectors_of_features_alone(dataset: Dataset) -> None:
    cold = [5, 40, 41]
    bare = without_events_of(dataset, cold)
    config = small_recipe(*TOWER)
    split = make_split(bare, config.split)
    features = encode_item_features(bare, split, config.items)
    known = features.known_R.tolist()
    assert not any(known[row] for row in cold) and all(known[:FIRST_ITEM_ROW])
    model = build_training_model(bare, split, config, total_steps=1)
    with torch.no_grad():
        model.items.get_parameter("ids.weight").normal_(generator=torch.Generator().manual_seed(0))
        vectors_RD = model.items.exact().candidates_UD
        alone_ND = F.normalize(
            model.items.get_submodule("tower.content")(features.codes_RS[cold], features.numbers_RF[cold]),
            dim=1,
        )
        others_ND = F.normalize(
            model.items.get_submodule("tower.content")(features.codes_RS[6:9], features.numbers_RF[6:9]),
            dim=1,
        )
    torch.testing.assert_close(vectors_RD[cold], alone_ND)
    torch.testing.assert_close(vectors_RD.norm(dim=1), torch.ones(len(vectors_RD)))
    assert not torch.allclose(vectors_RD[6:9], others_ND, atol=0.1)


def test_id_dropout_drops_a_share_of_id_vectors(dataset: Dataset) -> None:
    config = small_recipe(*TOWER, "items.id_dropout=0.5")
    model = build_training_model(dataset, make_split(dataset, config.split), config, total_steps=1)
    with torch.no_grad():
        model.items.get_parameter("ids.weight").normal_(generator=torch.Generator().manual_seed(0))
    exact_RD, first_RD, again_RD, other_RD = (
        vectors.candidates_UD.detach()
        for vectors in (model.items.exact(), *(model.items.for_step(seed, []).vectors for seed in (1, 1, 2)))
    )
    assert torch.equal(first_RD, again_RD)
    same_R = torch.isclose(first_RD, exact_RD, atol=1e-6).all(dim=1)
    assert same_R[:FIRST_ITEM_ROW].all()
    assert 0.3 < same_R[FIRST_ITEM_ROW:].double().mean() < 0.7
    assert not torch.equal(first_RD, other_RD)


def test_step_clears_cached_candidates(dataset: Dataset) -> None:
    config = small_recipe(*TOWER)
    model = build_training_model(dataset, make_split(dataset, config.split), config, total_steps=1)
    with torch.inference_mode():
        before_RD = model.items.exact().candidates_UD.clone()
        assert model.items.exact().candidates_UD is model.items.exact().candidates_UD
    model.items.for_step(0, [])
    with torch.no_grad():
        model.items.get_parameter("ids.weight").add_(
            torch.randn(before_RD.shape, generator=torch.Generator().manual_seed(0))
        )
        assert not torch.allclose(model.items.exact().candidates_UD, before_RD)


@pytest.mark.parametrize("name", ["title", "colour"])
def test_unusable_item_features_are_rejected(dataset: Dataset, name: str) -> None:
    split = make_split(dataset, small_recipe().split)
    with pytest.raises(
        UserError,
        match=rf"items\.features: {name}: no item feature .* a tower can use; there are: genres, year",
    ):
        encode_item_features(dataset, split, ItemsConfig(kind="tower", features=(name,)))


def test_tower_run_trains_and_loads(dataset: Dataset, tmp_path: Path) -> None:
    from training.evaluation.evaluate import evaluate
    from training.runs.fit import train_in_process
    from training.runs.open_run import load_run

    config = small_recipe(
        *TOWER, "loss.kind=sampled", "loss.sampler=mixed", "loss.num_negatives=32", "training.max_epochs=8"
    )
    manifest = train_in_process("two_tower", dataset, config, tmp_path / "run")
    opened = load_run(tmp_path / "run")
    np.testing.assert_allclose(np.linalg.norm(opened.vectors_RD[FIRST_ITEM_ROW:], axis=1), 1, rtol=1e-5)
    found = evaluate(opened, "validation", (10,))
    assert found["model"]["ndcg@10"] == pytest.approx(manifest.validation["validation_ndcg@10"], abs=1e-6)
    assert found["model"]["ndcg@10"] > 2 * found["popularity"]["ndcg@10"]
