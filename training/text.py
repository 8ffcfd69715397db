"""Text to vectors, by a small model without a network: the only file that imports wordllama, tokenizers or
safetensors.

The model is a table of vectors of tokens; a text is the mean of its tokens'.
`wordllama` is one that comes inside its PyPI package (the extra `text`), a folder with `tokenizer.json` and
`model.safetensors` (as Model2Vec and sentence-transformers write static models) is another.
What was encoded once is kept, by the digest of model and text, so that only new texts cost anything.

Shape legend: N texts, W width of a vector.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float32Array
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError, install_extra
from passerelle.files import cache_directory
from passerelle.progress import Progress, silent

WORDLLAMA = "wordllama"
BATCH = 1024

Embed = Callable[[list[str]], Float32Array]


class TextEncoder:
    """Encodes texts and remembers them.

    Args:
        model: `wordllama`, or the path of a folder with a static model.
        memory: where vectors are kept; a file of SQLite.

    Raises:
        UserError: the extra is not installed, or the folder holds no such model.
    """

    def __init__(self, model: str, memory: Path | None = None) -> None:
        self.model = model
        self._embed, self.digest = _static_model(model)
        self.width = self._embed([""]).shape[1]
        self._memory = memory or cache_directory() / "text_vectors.sqlite"

    def encode(self, texts: Sequence[str | None], progress: Progress = silent) -> Float32Array:
        """float32 [N, W] unit vectors, NaN where there is no text."""
        vectors_NW = np.full((len(texts), self.width), np.nan, dtype=np.float32)
        keys = [None if text is None or not text.strip() else self._key(text) for text in texts]
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._memory, timeout=60)) as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS vectors "
                "(key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
            )
            for start in range(0, len(texts), BATCH):
                end = min(start + BATCH, len(texts))
                indices = [index for index in range(start, end) if keys[index] is not None]
                self._encode_some(store, texts, keys, indices, vectors_NW)
                progress("text", end, len(texts))
        return vectors_NW

    def _encode_some(
        self,
        store: sqlite3.Connection,
        texts: Sequence[str | None],
        keys: Sequence[bytes | None],
        indices: Sequence[int],
        vectors_NW: Float32Array,
    ) -> None:
        """Encodes one batch, in one transaction: two processes may write at the same time."""
        asked = {keys[index] for index in indices}
        marks = ",".join("?" * len(asked))
        kept = dict(
            store.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", list(asked)).fetchall()
        )
        new = {keys[index]: index for index in indices if keys[index] not in kept}
        if new:
            vectors = self._embed([str(texts[index]) for index in new.values()])
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
            fresh = {key: vector.tobytes() for key, vector in zip(new, vectors, strict=True)}
            with store:
                store.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", fresh.items())
            kept |= fresh
        for index in indices:
            vectors_NW[index] = np.frombuffer(kept[keys[index]], dtype=np.float32)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.digest}\n{text}".encode()).digest()


def with_text_vectors(
    table: pa.Table, features: Sequence[FeatureColumn], encoder: TextEncoder, progress: Progress = silent
) -> tuple[pa.Table, tuple[FeatureColumn, ...]]:
    """Returns the table with vectors instead of texts, and its features after that."""
    changed = []
    for feature in features:
        if feature.kind == "text":
            vectors_NW = encoder.encode(table.column(feature.name).to_pylist(), progress)
            missing_N = np.isnan(vectors_NW[:, 0])
            offsets_N1 = np.concatenate([[0], np.cumsum(np.where(missing_N, 0, encoder.width))]).astype(
                np.int64
            )
            column = pa.LargeListArray.from_arrays(
                pa.array(offsets_N1), pa.array(vectors_NW[~missing_N].ravel()), mask=pa.array(missing_N)
            )
            table = table.set_column(table.column_names.index(feature.name), feature.name, column)
            feature = FeatureColumn(name=feature.name, kind="vector", width=encoder.width)
        changed.append(feature)
    return table, tuple(changed)


def _static_model(name: str) -> tuple[Embed, str]:
    """Returns a model, and the digest of its files.

    Nothing is downloaded.
    """
    wordllama = _import_wordllama()
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    package = Path(wordllama.__file__).parent
    inside = [
        package / "tokenizers" / "l2_supercat_tokenizer_config.json",
        package / "weights" / "l2_supercat_256.safetensors",
    ]
    files = inside if name == WORDLLAMA else [Path(name) / "tokenizer.json", Path(name) / "model.safetensors"]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"text encoder {name!r}: not {WORDLLAMA}, nor a folder with a static model: "
            f"{', '.join(missing)} is missing"
        )
    try:
        tokenizer, tensors = Tokenizer.from_file(str(files[0])), load_file(files[1])
    except Exception as error:  # both raise exceptions that are nothing else
        raise UserError(f"text encoder {name!r}: cannot be read ({error})") from None
    tables = [table for table in tensors.values() if table.ndim == 2]
    if len(tables) != 1:
        raise UserError(
            f"text encoder {name!r}: {files[1].name} holds {len(tables)} tables, and a static model has one"
        )
    model = wordllama.WordLlamaInference(tables[0], tokenizer)

    def embed(texts: list[str]) -> Float32Array:
        return np.asarray(model.embed(texts, batch_size=BATCH), dtype=np.float32)

    return embed, hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _import_wordllama() -> Any:
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        import wordllama
    except ImportError:
        raise UserError(f"text encoders need wordllama: {install_extra('text')}") from None
    # importing it sets up logging for the whole program
    logging.root.handlers[:], logging.root.level = handlers, level
    return wordllama
