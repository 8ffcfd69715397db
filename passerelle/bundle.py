"""The bundle on disk: everything a version of a model needs to be served, with no training code.

    bundle/
      manifest.json          model, dims, signatures, resolved configuration, offline metrics, parity, checksums
      query_encoder.onnx     item_vectors [batch, length, D] float32, mask [batch, length] bool, event_types [batch, length] int64,
                             timestamps_ms [batch, length] int64, query_timestamp_ms [batch, 1] int64, user_codes and context_codes
                             [batch, S or more] int64, user_numbers and context_numbers [batch, F or more] float32
                             -> query [batch, D] float32
      ranker.onnx            features [batch, F] float32 -> score [batch, 1] float32
      item_vectors.npy       [num_items + FIRST_ITEM_ROW, D] float32; row = item_row; the special rows are zero
      history_vectors.npy    the same of items in a history; only there if the model has others for them
      candidate_encoder.onnx id_vector [batch, D] float32 (zero of an item that training never saw), codes [batch, S] int64, numbers
                             [batch, F] float32 -> vector [batch, D] float32; only there if the model has a candidate tower
      item_encoding.json     how an item's features become the tower's codes and numbers; likewise
      query_encoding.json    how features of users and circumstances become codes and numbers; only there if the query encoder reads any
      user_codes.npy         [num_users, S] int32 of the known users, and user_numbers.npy, [num_users, F] float32; likewise
      items.arrow            item_id, features, metadata; row i is item_row i + FIRST_ITEM_ROW
      popularity.arrow       count, recent_count; row = item_row, special rows included
      histories.arrow        user_id, item_rows, timestamps_ms and event_types (all of them, oldest first) of every known user
      index/                 of the vectors, with a manifest of its own, once `passerelle build-index` or `publish` made it
      reference.arrow        what training computed for some real users: the parity gate compares every layer with it

Shape legend: R item rows (special rows included), D vector width, L events of a user, U users, S code slots, F numbers (of a query) or
ranking features.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from passerelle.arrays import AnyArray, Float32Array, Float64Array, Int32Array, Int64Array
from passerelle.arrow import column, read_table
from passerelle.config import Config, validate
from passerelle.dataset import FeatureColumn
from passerelle.encoding import FeatureEncoding, QueryEncoding
from passerelle.errors import UserError
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID, USER_ID
from passerelle.manifest import Manifest, open_manifest

QUERY_ENCODER = "query_encoder"
CANDIDATE_ENCODER = "candidate_encoder"
RANKER = "ranker"

BUNDLE_FILES = (
    "query_encoder.onnx",
    "ranker.onnx",
    "item_vectors.npy",
    "items.arrow",
    "popularity.arrow",
    "histories.arrow",
    "reference.arrow",
)
INDEX = "index"
HISTORY_VECTORS = "history_vectors.npy"
ITEM_ENCODING = "item_encoding.json"
QUERY_ENCODING = "query_encoding.json"
USER_CODES, USER_NUMBERS = "user_codes.npy", "user_numbers.npy"
OPTIONAL_FILES = (
    HISTORY_VECTORS,
    f"{CANDIDATE_ENCODER}.onnx",
    ITEM_ENCODING,
    QUERY_ENCODING,
    USER_CODES,
    USER_NUMBERS,
)


class TensorSpec(Config):
    """One input or output of an ONNX file; a dimension is a number, or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class NetworkSpec(Config):
    """Signature of one ONNX file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ItemEncoding(Config):
    """What `item_encoding.json` holds: all that `add-items` has to know of the candidate tower's input."""

    encoding: FeatureEncoding
    text_encoder: str | None
    """What made vectors of text first; None: text is not used."""
    text_digest: str | None
    """Of its files: another model would make other vectors."""


class BundleManifest(Manifest):
    """What a bundle holds."""

    KIND: ClassVar[str] = "bundle"
    FORMAT_VERSION: ClassVar[int] = 4
    MADE_BY: ClassVar[str] = "passerelle export"

    bundle_id: str
    """Digest of the served files: the same files make the same id."""
    model: str
    """Recipe name, `bert4rec`."""
    dim: int
    max_history: int
    """Longest history the query encoder was trained on; older events are ignored."""
    num_items: int
    num_users: int
    event_types: tuple[str, ...]
    """Names of the kinds of events, in code order."""
    target_event_types: tuple[str, ...]
    """Those that are recommended for: their items alone count as seen."""
    first_item_row: int = FIRST_ITEM_ROW
    networks: dict[str, NetworkSpec]
    features: tuple[str, ...]
    """Names of the ranker's inputs, in order."""
    item_features: tuple[FeatureColumn, ...]
    title: str | None
    num_candidates: int
    """Candidates the ranker was trained to order, and is given when serving."""
    config: dict[str, Any]
    """Resolved training configuration."""
    trained_on: str
    """In words: `train`, or train and validation, for how many epochs and which run chose them."""
    offline_metrics: dict[str, dict[str, float]]
    """Test metrics by scorer: `model`, `ranker`, `popularity` and whatever other baselines were evaluated."""
    parity: dict[str, dict[str, Any]]
    """Largest differences measured on `reference.arrow`, by layer: `onnxruntime`, then `triton` and `http` after publishing."""


def bundle_id(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of the files of a bundle, as `provenance` describes them."""
    return hashlib.sha256("".join(entry["sha256"] for entry in files.values()).encode()).hexdigest()[:16]


class History(NamedTuple):
    """What a known user did, oldest first."""

    item_rows_L: Int64Array
    timestamps_ms_L: Int64Array
    event_types_L: Int64Array


@dataclass(frozen=True)
class Bundle:
    """An open bundle; large arrays are memory-mapped."""

    path: Path
    manifest: BundleManifest
    vectors_RD: Float32Array
    history_vectors_RD: Float32Array
    """What the query encoder is given for items of a history: `vectors_RD` for most models."""
    items: pa.Table
    counts_R: Float64Array
    recent_counts_R: Float64Array
    item_ids: IdMap
    user_ids: IdMap
    histories: tuple[pa.LargeListArray, ...]
    """A column for each field of `History`."""
    query_encoding: QueryEncoding
    user_codes_US: Int32Array | None
    """Of the known users, by the encoding's part for them; None where it has no columns."""
    user_numbers_UF: Float32Array | None

    def history(self, user_row: int) -> History:
        """Of a known user."""
        return History(
            *(np.asarray(column[user_row].values.to_numpy(), dtype=np.int64) for column in self.histories)
        )

    def seen(self, history: History) -> Int64Array:
        """Distinct item rows of a history that are not to be recommended again."""
        targets = [self.manifest.event_types.index(name) for name in self.manifest.target_event_types]
        return np.unique(history.item_rows_L[np.isin(history.event_types_L, targets)])

    def reference(self) -> pa.Table:
        """What training computed for some real users; see `training/export/bundle.py` for the columns."""
        return read_table(self.path / "reference.arrow")


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Memory-map a bundle; `verify` checks every file against its checksum first.

    Raises:
        UserError: not a bundle; a file is missing, truncated or altered; or its tables disagree with the manifest.
    """
    manifest = open_manifest(path, BundleManifest, verify=verify)
    absent = sorted(set(BUNDLE_FILES) - set(manifest.files))
    if absent:
        raise UserError(
            f"{path}: the manifest does not name {', '.join(absent)}: make it anew with `{manifest.MADE_BY}`"
        )
    if manifest.first_item_row != FIRST_ITEM_ROW:
        raise UserError(
            f"{path}: items start at row {manifest.first_item_row}, here at {FIRST_ITEM_ROW}: make it anew with `{manifest.MADE_BY}`"
        )
    shape = (manifest.num_items + FIRST_ITEM_ROW, manifest.dim)
    vectors_RD = _mapped(path / "item_vectors.npy", shape)
    history_vectors_RD = (
        _mapped(path / HISTORY_VECTORS, shape) if HISTORY_VECTORS in manifest.files else vectors_RD
    )
    encoding = QueryEncoding()
    if QUERY_ENCODING in manifest.files:
        encoding = validate(
            QueryEncoding,
            json.loads((path / QUERY_ENCODING).read_text(encoding="utf-8")),
            str(path / QUERY_ENCODING),
        )
    items, users, popularity = (
        read_table(path / f"{name}.arrow") for name in ("items", "histories", "popularity")
    )
    return Bundle(
        path=path,
        manifest=manifest,
        vectors_RD=vectors_RD,
        history_vectors_RD=history_vectors_RD,
        items=items,
        counts_R=column(popularity, "count", np.float64),
        recent_counts_R=column(popularity, "recent_count", np.float64),
        item_ids=IdMap(items.column(ITEM_ID), first_row=FIRST_ITEM_ROW, name=ITEM_ID),
        user_ids=IdMap(users.column(USER_ID), first_row=0, name=USER_ID),
        histories=tuple(
            users.column(name).combine_chunks() for name in ("item_rows", "timestamps_ms", "event_types")
        ),
        query_encoding=encoding,
        user_codes_US=_mapped(path / USER_CODES, (manifest.num_users, encoding.user.num_slots))
        if USER_CODES in manifest.files
        else None,
        user_numbers_UF=(
            _mapped(path / USER_NUMBERS, (manifest.num_users, encoding.user.num_numbers))
            if USER_NUMBERS in manifest.files
            else None
        ),
    )


def _mapped(path: Path, expected: tuple[int, int]) -> AnyArray:
    values: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.shape != expected:
        raise UserError(f"{path}: shape {values.shape}, the manifest says {expected}")
    return values
