"""Text to vectors: alike for like texts, remembered by content, and read from a folder of one's own."""

import json
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from passerelle.dataset import Dataset, FeatureColumn
from passerelle.errors import UserError
from passerelle.splits import make_split
from training import text
from training.model.factory import encode_item_features
from training.model_config import ItemsConfig
from training.text import TextEncoder, with_text_vectors

TEXTS = ["Toy Story", "Toy Story 2", "The Silence of the Lambs", None, " ", "Toy Story"]


def test_similar_texts_have_similar_vectors(tmp_path: Path) -> None:
    handlers = logging.root.handlers[:]
    vectors_NW = TextEncoder("wordllama", tmp_path / "memory").encode(TEXTS)
    assert vectors_NW.shape == (6, 256)
    assert np.isnan(vectors_NW[3:5]).all()
    assert np.array_equal(vectors_NW[0], vectors_NW[5])
    np.testing.assert_allclose(np.linalg.norm(vectors_NW[:3], axis=1), 1, rtol=1e-5)
    assert vectors_NW[0] @ vectors_NW[1] > 0.8 > 0.3 > vectors_NW[0] @ vectors_NW[2]
    assert logging.root.handlers == handlers, "importing the library has set up logging"


def test_only_new_texts_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder("wordllama", tmp_path / "memory")
    monkeypatch.setattr(text, "BATCH", 2)
    before_NW = encoder.encode(TEXTS)
    asked: list[str] = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda texts: (asked.extend(texts), embed(texts))[1])
    after_NW = encoder.encode(["new", *TEXTS, "new"])
    assert asked == ["new"]
    np.testing.assert_array_equal(after_NW[1:-1], before_NW)
    other = TextEncoder("wordllama", tmp_path / "memory")
    other.digest = "of another model"
    other.encode(["Toy Story"])
    assert sqlite3.connect(tmp_path / "memory").execute("SELECT count(*) FROM vectors").fetchone() == (5,)


def static_model(folder: Path, tables: int = 1) -> Path:
    """Three words, with a vector each."""
    from safetensors.numpy import save_file

    folder.mkdir()
    vocabulary = {"[UNK]": 0, "red": 1, "shoe": 2}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    table = np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32)
    save_file({f"table{number}": table for number in range(tables)}, folder / "model.safetensors")
    return folder


def test_a_static_model_from_a_folder(tmp_path: Path) -> None:
    encoder = TextEncoder(str(static_model(tmp_path / "model")), tmp_path / "memory")
    vectors_NW = encoder.encode(["red", "red shoe", "nothing known"])
    np.testing.assert_allclose(vectors_NW, [[1, 0], [0.5**0.5, 0.5**0.5], [0, 0]], rtol=1e-6)


def test_unreadable_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"text encoder 'wordlama': not wordllama, nor a folder .*: tokenizer\.json, model\.safe",
    ):
        TextEncoder("wordlama")
    with pytest.raises(UserError, match=r"model\.safetensors holds 2 tables, and a static model has one"):
        TextEncoder(str(static_model(tmp_path / "two", tables=2)))
    broken = static_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"text encoder '.*broken': cannot be read \(.+\)"):
        TextEncoder(str(broken))


def test_texts_of_a_table_become_vectors(tmp_path: Path) -> None:
    encoder = TextEncoder(str(static_model(tmp_path / "model")), tmp_path / "memory")
    features = (FeatureColumn(name="year", kind="numeric"), FeatureColumn(name="title", kind="text"))
    table, changed = with_text_vectors(pa.table({"title": ["red", None], "year": [1, 2]}), features, encoder)
    assert changed == (features[0], FeatureColumn(name="title", kind="vector", width=2))
    assert table.to_pydict() == {"title": [[1, 0], None], "year": [1, 2]}


def test_a_tower_takes_text_where_a_recipe_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.datasets import small_recipe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    split = make_split(dataset, small_recipe().split)
    without, with_text = (
        encode_item_features(dataset, split, ItemsConfig(kind="tower", text_encoder=name))
        for name in (None, "wordllama")
    )
    assert with_text.encoding.num_numbers == without.encoding.num_numbers + 257
    assert (tmp_path / "passerelle" / "text_vectors.sqlite").is_file()
