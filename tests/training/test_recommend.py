"""Recommendations without a server: those that evaluation ranks, in the caller's ids."""

import numpy as np
import pytest

from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from training.recommend import recommend, similar_items
from training.runs.open_run import OpenRun


def test_users_get_unseen_items_in_descending_order(run: OpenRun) -> None:
    dataset = run.dataset
    user_ids = dataset.users.column("user_id").to_pylist()[5:2:-1]
    found = recommend(run, user_ids, k=10)
    assert found.column("user_id").to_pylist() == np.repeat(user_ids, 10).tolist()
    for user_id in user_ids:
        row = dataset.user_ids().row(user_id)
        seen = dataset.item_rows_E[dataset.offsets_U1[row] : dataset.offsets_U1[row + 1]].astype(np.int64)
        mine = found.filter(np.array(found.column("user_id")) == user_id)
        items, scores = mine.column("item_id").to_pylist(), mine.column("score").to_numpy()
        assert len(set(items)) == 10 and not set(items) & set(dataset.item_ids().ids(seen))
        assert (np.diff(scores) <= 0).all()


def test_no_users_give_an_empty_table(run: OpenRun) -> None:
    empty = recommend(run, [], k=3)
    assert empty.column_names == ["user_id", "item_id", "score"] and empty.num_rows == 0


def test_similar_items_are_nearest_by_cosine_without_the_item(run: OpenRun) -> None:
    item_id = run.dataset.items.column("item_id")[3].as_py()
    found = similar_items(run, item_id, k=5)
    vectors_ID = run.vectors_RD[FIRST_ITEM_ROW:]
    unit_ID = vectors_ID / np.linalg.norm(vectors_ID, axis=1, keepdims=True)
    cosines_I = unit_ID @ unit_ID[3]
    best = [item for item in np.argsort(-cosines_I, kind="stable") if item != 3][:5]
    assert found.column("item_id").to_pylist() == run.dataset.items.column("item_id").take(best).to_pylist()
    np.testing.assert_allclose(found.column("score"), cosines_I[best], atol=1e-6)


def test_mistakes_are_named(run: OpenRun) -> None:
    known = run.dataset.users.column("user_id")[0].as_py()
    with pytest.raises(UserError, match="user_id 5: not in the dataset"):
        recommend(run, [known, 5])
    with pytest.raises(UserError, match="must lie between 1 and 120"):
        recommend(run, [known], k=121)
    with pytest.raises(UserError, match="item_id 5: not in the dataset"):
        similar_items(run, 5)
