"""New items in a bundle: with the vectors of their features, found at once, and nothing else changed.

Shape legend: R item rows, D width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from passerelle.bundle import CANDIDATE_ENCODER, Bundle, open_bundle
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID
from training.export.new_items import add_items, read_items
from training.export.onnx_session import open_session
from training.export.parity import REFERENCE_USERS, check_candidate_encoder
from training.runs.open_run import OpenRun


def some_items(bundle: Bundle, ids: list[Any], **columns: list[Any]) -> pa.Table:
    """Items with the features of the first ones, or others."""
    like = bundle.items.slice(0, len(ids))
    table = like.set_column(0, ITEM_ID, pa.array(ids, bundle.item_ids.type))
    for name, values in columns.items():
        table = table.set_column(
            table.column_names.index(name), name, pa.array(values, table.schema.field(name).type)
        )
    return table


def test_exported_tower_equals_torch(towers: Bundle, two_tower: OpenRun) -> None:
    parity = towers.manifest.parity["onnxruntime"]
    assert 0 <= parity["max_vector_cosine_distance"] <= 1e-5
    assert parity["identical_top_10"] == REFERENCE_USERS
    assert towers.manifest.networks[CANDIDATE_ENCODER].outputs[0].shape == ("batch", 32)
    items = two_tower.model.items.candidate_tower
    assert items is not None
    with torch.no_grad():
        kept = items.tower.content.out.bias.clone()
        items.tower.content.out.bias.add_(0.5)
        items._candidates_cache = None
    vars(two_tower).pop("vectors_RD", None)
    try:
        with pytest.raises(UserError, match="ONNX Runtime's item vectors are not torch's"):
            check_candidate_encoder(two_tower, towers.path)
    finally:
        with torch.no_grad():
            items.tower.content.out.bias.copy_(kept)
            items._candidates_cache = None
        vars(two_tower).pop("vectors_RD", None)


def test_new_items_have_the_vectors_of_their_features(towers: Bundle, tmp_path: Path) -> None:
    new_ids = [10**6, 10**6 + 1]
    added = add_items(
        towers.path, some_items(towers, new_ids, genres=[["Drama"], ["never seen"]]), tmp_path / "grown"
    )
    assert (added.num_added, added.unknown_values) == (2, {"genres": 1})
    grown = open_bundle(tmp_path / "grown")
    before, after = towers.manifest, grown.manifest
    assert after.num_items == before.num_items + 2
    assert after.bundle_id != before.bundle_id
    np.testing.assert_array_equal(grown.vectors_RD[:-2], towers.vectors_RD)
    np.testing.assert_allclose(np.linalg.norm(grown.vectors_RD[-2:], axis=1), 1, rtol=1e-5)
    assert grown.items.slice(0, before.num_items).equals(towers.items)
    assert grown.items.column(ITEM_ID).to_pylist()[-2:] == new_ids
    assert (grown.counts_R[-2:] == 0).all() and np.array_equal(grown.counts_R[:-2], towers.counts_R)
    assert grown.item_ids.row(new_ids[1]) == before.num_items + 1 + FIRST_ITEM_ROW
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed <= {"item_vectors.npy", "items.arrow", "popularity.arrow", "reference.arrow"}
    assert list(after.parity) == ["onnxruntime"]


def test_a_new_item_is_found_where_an_old_one_like_it_is(towers: Bundle, tmp_path: Path) -> None:
    """A twin of what an item's features say is nearest to itself, and answers of the
    reference have it where it belongs.
    """
    session = open_session(towers.path / f"{CANDIDATE_ENCODER}.onnx")
    assert {spec.name for spec in session.get_inputs()} == {"id_vector", "codes", "numbers"}
    grown = add_items(
        towers.path, some_items(towers, list(range(10**6, 10**6 + 60))), tmp_path / "grown"
    ).bundle
    users = grown.reference().users()
    top = np.array([user.candidate_rows_C for user in users])
    assert (top >= towers.manifest.num_items + FIRST_ITEM_ROW).any(), (
        "no new item is among anybody's candidates"
    )
    for user in users:
        np.testing.assert_allclose(
            grown.vectors_RD[user.candidate_rows_C] @ user.query_D, user.candidate_scores_C, atol=1e-5
        )


def test_without_new_items_the_reference_is_what_training_computed(towers: Bundle, tmp_path: Path) -> None:
    same = add_items(towers.path, some_items(towers, []), tmp_path / "same").bundle
    before, after = towers.reference().table, same.reference().table
    assert before.schema == after.schema
    for name in ("user_id", "timestamp_ms", "query", "candidate_rows", "top_rows"):
        assert before.column(name).to_pylist() == after.column(name).to_pylist(), name
    for name in ("candidate_scores", "top_scores"):
        np.testing.assert_allclose(before.column(name).to_pylist(), after.column(name).to_pylist(), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "columns", "said"),
    [
        ([10**6, 10**6], {}, r"new: 1 rows repeat an item_id"),
        ([10**6, None], {}, r"new: 1 rows have no item_id"),
        (["first"], {}, r"new: 1 of the items are in .* already, the first is "),
    ],
)
def test_items_that_cannot_be_added(
    towers: Bundle, tmp_path: Path, ids: list[Any], columns: dict[str, Any], said: str
) -> None:
    ids = [towers.items.column(ITEM_ID)[0].as_py() if value == "first" else value for value in ids]
    with pytest.raises(UserError, match=said):
        add_items(towers.path, some_items(towers, ids, **columns), tmp_path / "grown", where="new")
    assert not (tmp_path / "grown").exists()


def test_wrong_tables_are_refused(towers: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    good = some_items(towers, [10**6])
    out = tmp_path / "grown"
    with pytest.raises(
        UserError, match=r"new: column genres is missing; the tower reads item_id, genres, year"
    ):
        add_items(towers.path, good.drop_columns(["genres"]), out, where="new")
    with pytest.raises(UserError, match=r"new: column 'year' holds string, not "):
        add_items(
            towers.path,
            good.set_column(good.column_names.index("year"), "year", pa.array(["soon"])),
            out,
            where="new",
        )
    with pytest.raises(UserError, match=r"its model has vectors of the items it was trained on alone"):
        add_items(bundle.path, some_items(bundle, [10**6]), out)
    with pytest.raises(UserError, match=r"already exists"):
        add_items(towers.path, good, towers.path)
    (tmp_path / "no.parquet").write_text("nothing")
    with pytest.raises(UserError, match=r"no\.parquet: cannot be read as a Parquet file"):
        read_items(tmp_path / "no.parquet")
    pyarrow.parquet.write_table(good, tmp_path / "new.parquet")
    assert add_items(towers.path, read_items(tmp_path / "new.parquet"), out).num_added == 1
