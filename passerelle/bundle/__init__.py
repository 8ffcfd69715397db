"""The bundle on disk: everything a version of a model needs to be served, with no training code.

bundle/
  manifest.json          model, dims, signatures, resolved configuration, offline metrics, parity, checksums
  query_encoder.onnx     inputs: item_vectors [batch, length, D] float32, mask [batch, length] bool,
                         event_types and timestamps_ms [batch, length] int64,
                         query_timestamp_ms [batch, 1] int64,
                         user_codes and context_codes [batch, S or more] int64,
                         user_numbers and context_numbers [batch, F or more] float32;
                         output: query [batch, D] float32
  ranker.onnx            features [batch, F] float32 -> score [batch, 1] float32
  item_vectors.npy       [num_items + FIRST_ITEM_ROW, D] float32; row = item_row; the special rows are zero
  history_vectors.npy    vectors of items in a history, where the model has others for them
  candidate_encoder.onnx inputs: id_vector [batch, D] float32 (zero for an item that training never saw),
                         codes [batch, S] int64, numbers [batch, F] float32;
                         output: vector [batch, D] float32; only of a model with a candidate tower
  item_encoding.json     how an item's features become the tower's codes and numbers; likewise
  query_encoding.json    how user and context features become codes and numbers,
                         where the query encoder reads any
  user_codes.npy         [num_users, S] int32 of the known users; likewise
  user_numbers.npy       [num_users, F] float32; likewise
  items.arrow            item_id, features, metadata; row i is item_row i + FIRST_ITEM_ROW
  popularity.arrow       count, recent_count; row = item_row, special rows included
  histories.arrow        user_id, item_rows, timestamps_ms and event_types of every known user, oldest first
  reference.arrow        answers that training computed for some users (`passerelle.bundle.reference`)
  index/                 index of the vectors, with a manifest of its own,
                         once `passerelle build-index` or `passerelle publish` built it
"""

from passerelle.bundle.manifest import (
    BUNDLE_FILES,
    CANDIDATE_ENCODER,
    HISTORY_VECTORS,
    INDEX,
    ITEM_ENCODING,
    OPTIONAL_FILES,
    QUERY_ENCODER,
    QUERY_ENCODING,
    RANKER,
    USER_CODES,
    USER_NUMBERS,
    BundleManifest,
    ItemEncoding,
    NetworkSpec,
    TensorSpec,
    bundle_id,
)
from passerelle.bundle.reading import Bundle, History, open_bundle
from passerelle.bundle.reference import (
    REFERENCE,
    SCORE_TOLERANCE,
    TOP_K,
    Reference,
    ReferenceUser,
    read_reference,
    write_reference,
)
from passerelle.bundle.writing import BundleContents, Network, contents_of, write_bundle

__all__ = [
    "BUNDLE_FILES",
    "CANDIDATE_ENCODER",
    "HISTORY_VECTORS",
    "INDEX",
    "ITEM_ENCODING",
    "OPTIONAL_FILES",
    "QUERY_ENCODER",
    "QUERY_ENCODING",
    "RANKER",
    "REFERENCE",
    "SCORE_TOLERANCE",
    "TOP_K",
    "USER_CODES",
    "USER_NUMBERS",
    "Bundle",
    "BundleContents",
    "BundleManifest",
    "History",
    "ItemEncoding",
    "Network",
    "NetworkSpec",
    "Reference",
    "ReferenceUser",
    "TensorSpec",
    "bundle_id",
    "contents_of",
    "open_bundle",
    "read_reference",
    "write_bundle",
    "write_reference",
]
