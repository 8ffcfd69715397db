"""Names of a bundle's files, and its manifest."""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

from passerelle.bundle.reference import REFERENCE
from passerelle.config import Config
from passerelle.dataset import FeatureColumn
from passerelle.encoding import FeatureEncoding
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.manifest import Manifest

QUERY_ENCODER = "query_encoder"
CANDIDATE_ENCODER = "candidate_encoder"
RANKER = "ranker"


def onnx_file(network: str) -> str:
    """Returns the name of a network's file."""
    return f"{network}.onnx"


ITEM_VECTORS = "item_vectors.npy"
ITEMS, POPULARITY, HISTORIES = "items.arrow", "popularity.arrow", "histories.arrow"
BUNDLE_FILES = (
    onnx_file(QUERY_ENCODER),
    onnx_file(RANKER),
    ITEM_VECTORS,
    ITEMS,
    POPULARITY,
    HISTORIES,
    REFERENCE,
)
INDEX = "index"
HISTORY_VECTORS = "history_vectors.npy"
ITEM_ENCODING = "item_encoding.json"
QUERY_ENCODING = "query_encoding.json"
USER_CODES, USER_NUMBERS = "user_codes.npy", "user_numbers.npy"
OPTIONAL_FILES = (
    HISTORY_VECTORS,
    onnx_file(CANDIDATE_ENCODER),
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
    """`item_encoding.json`: how item features become the input of the candidate tower."""

    encoding: FeatureEncoding
    text_encoder: str | None
    """Encoder that turned text into vectors first; None: text is not used."""
    text_digest: str | None
    """Digest of the text encoder's files: another encoder gives other vectors."""


class BundleManifest(Manifest):
    """`manifest.json` of a bundle."""

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
    """Names of the event types, in code order."""
    target_event_types: tuple[str, ...]
    """Event types that the model predicts: only items of such events count as seen."""
    first_item_row: int = FIRST_ITEM_ROW
    networks: dict[str, NetworkSpec]
    features: tuple[str, ...]
    """Names of the ranker's inputs, in order."""
    item_features: tuple[FeatureColumn, ...]
    title: str | None
    num_candidates: int
    """Candidates that the ranker orders, in training and serving."""
    config: dict[str, Any]
    """Resolved training configuration."""
    trained_on: str
    """`train`; or train and validation, with the number of epochs and the run that chose it."""
    offline_metrics: dict[str, dict[str, float]]
    """Test metrics by scorer: `model`, `ranker`, `popularity` and other evaluated baselines."""
    parity: dict[str, dict[str, Any]]
    """Largest differences measured on `reference.arrow`, by layer.

    The layers are `onnxruntime`, and `triton` and `http` after publishing.
    """


def bundle_id(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the digest of a bundle's files, given as `provenance` describes them."""
    return hashlib.sha256("".join(entry["sha256"] for entry in files.values()).encode()).hexdigest()[:16]
