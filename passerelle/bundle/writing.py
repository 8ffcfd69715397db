"""Write a bundle: whole, or not at all.

Shape legend: R item rows (special rows included), D vector width, U known users, S
code slots, F numbers of a user.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from passerelle.arrays import AnyArray, Float32Array, Float64Array, Int32Array
from passerelle.arrow import write_table
from passerelle.bundle.manifest import (
    BUNDLE_FILES,
    HISTORIES,
    HISTORY_VECTORS,
    INDEX,
    ITEM_ENCODING,
    ITEM_VECTORS,
    ITEMS,
    OPTIONAL_FILES,
    POPULARITY,
    QUERY_ENCODING,
    USER_CODES,
    USER_NUMBERS,
    BundleManifest,
    ItemEncoding,
    NetworkSpec,
    bundle_id,
    onnx_file,
)
from passerelle.bundle.reading import Bundle, open_bundle, read_histories, read_item_encoding
from passerelle.bundle.reference import ReferenceUser, write_reference
from passerelle.config import Config
from passerelle.encoding import QueryEncoding
from passerelle.files import new_directory, write_text
from passerelle.ids import FIRST_ITEM_ROW, USER_ID
from passerelle.manifest import Manifest, provenance, write_manifest

_DERIVED = {
    *Manifest.model_fields,
    "bundle_id",
    "dim",
    "num_items",
    "num_users",
    "first_item_row",
    "networks",
}
"""Fields of the manifest that follow from the files."""


@dataclass(frozen=True)
class Network:
    """An ONNX file and its signature."""

    path: Path
    spec: NetworkSpec


@dataclass(frozen=True)
class BundleContents:
    """Everything that a bundle is written from."""

    networks: Mapping[str, Network]
    """The query encoder, the ranker and, of a model that has one, the candidate encoder, by name."""
    vectors_RD: Float32Array
    items: pa.Table
    """`item_id` first, then the item features, in row order."""
    counts_R: Float64Array
    recent_counts_R: Float64Array
    histories: pa.Table
    """`user_id`, `item_rows`, `timestamps_ms` and `event_types` of every known user, oldest event first."""
    reference: Sequence[ReferenceUser]
    description: Mapping[str, Any]
    """The fields of `BundleManifest` that follow from no file: `model`, `max_history`, `event_types`,
    `target_event_types`, `features`, `item_features`, `title`, `num_candidates`, `config`, `trained_on`,
    `offline_metrics`, `parity`."""
    libraries: Mapping[str, str]
    """Versions of the libraries that the contents were made with, by name."""
    history_vectors_RD: Float32Array | None = None
    """Vectors of items in a history, where they are others."""
    item_encoding: ItemEncoding | None = None
    """Of a model with a candidate tower."""
    query_encoding: QueryEncoding | None = None
    """Of a model whose query encoder reads features."""
    user_codes_US: Int32Array | None = None
    """Of a model whose query encoder reads features of users."""
    user_numbers_UF: Float32Array | None = None
    """Likewise."""
    index: Path | None = None
    """Folder of an index, to be copied."""


def contents_of(bundle: Bundle) -> BundleContents:
    """Returns the contents of an open bundle, to be written again with some of them replaced."""
    manifest = bundle.manifest
    return BundleContents(
        networks={
            name: Network(bundle.path / onnx_file(name), spec) for name, spec in manifest.networks.items()
        },
        vectors_RD=bundle.vectors_RD,
        items=bundle.items,
        counts_R=bundle.counts_R,
        recent_counts_R=bundle.recent_counts_R,
        histories=read_histories(bundle.path),
        reference=bundle.reference().users(),
        description=manifest.model_dump(exclude=_DERIVED),
        libraries=manifest.libraries,
        history_vectors_RD=bundle.history_vectors_RD if HISTORY_VECTORS in manifest.files else None,
        item_encoding=read_item_encoding(bundle.path) if ITEM_ENCODING in manifest.files else None,
        query_encoding=bundle.query_encoding if QUERY_ENCODING in manifest.files else None,
        user_codes_US=bundle.user_codes_US,
        user_numbers_UF=bundle.user_numbers_UF,
        index=bundle.path / INDEX if (bundle.path / INDEX).is_dir() else None,
    )


def write_bundle(path: Path, contents: BundleContents, *, overwrite: bool = False) -> Bundle:
    """Write a bundle in one step and open it.

    Raises:
        UserError: `path` exists and `overwrite` is false.
    """
    num_rows, dim = contents.vectors_RD.shape
    num_items, num_users = contents.items.num_rows, contents.histories.num_rows
    assert num_rows == num_items + FIRST_ITEM_ROW, f"{num_rows} vectors of {num_items} items"
    assert len(contents.counts_R) == len(contents.recent_counts_R) == num_rows, "a count for each row"
    with new_directory(path, overwrite=overwrite) as scratch:
        for name, network in contents.networks.items():
            shutil.copyfile(network.path, scratch / onnx_file(name))
        _write_arrays(scratch, contents)
        _write_tables(scratch, contents)
        _write_encodings(scratch, contents)
        if contents.index is not None:
            shutil.copytree(contents.index, scratch / INDEX)
        files = (*BUNDLE_FILES, *(name for name in OPTIONAL_FILES if (scratch / name).exists()))
        common = provenance(BundleManifest, scratch, files, libraries=())
        derived = {
            "libraries": dict(contents.libraries),
            "bundle_id": bundle_id(common["files"]),
            "dim": dim,
            "num_items": num_items,
            "num_users": num_users,
            "networks": {name: network.spec for name, network in contents.networks.items()},
        }
        write_manifest(scratch, BundleManifest.model_validate({**common, **derived, **contents.description}))
    return open_bundle(path, verify=False)


def _write_arrays(directory: Path, contents: BundleContents) -> None:
    arrays: dict[str, AnyArray | None] = {
        ITEM_VECTORS: contents.vectors_RD,
        HISTORY_VECTORS: contents.history_vectors_RD,
        USER_CODES: contents.user_codes_US,
        USER_NUMBERS: contents.user_numbers_UF,
    }
    for name, values in arrays.items():
        if values is not None:
            np.save(directory / name, values, allow_pickle=False)


def _write_tables(directory: Path, contents: BundleContents) -> None:
    write_table(directory / ITEMS, contents.items)
    popularity = {"count": contents.counts_R, "recent_count": contents.recent_counts_R}
    write_table(directory / POPULARITY, pa.table(popularity))
    write_table(directory / HISTORIES, contents.histories)
    write_reference(directory, contents.reference, contents.histories.schema.field(USER_ID).type)


def _write_encodings(directory: Path, contents: BundleContents) -> None:
    encodings: dict[str, Config | None] = {
        ITEM_ENCODING: contents.item_encoding,
        QUERY_ENCODING: contents.query_encoding,
    }
    for name, encoding in encodings.items():
        if encoding is not None:
            write_text(directory / name, encoding.model_dump_json() + "\n")
