"""New items in a bundle, without training: its candidate tower gives them vectors of what their features say.

A bundle is never changed, so a new one is written beside it, with the same networks. Whatever depends on the catalogue is made anew,
the answers to the reference users too, which `publish` compares every layer with: a new item may be among their best.

Shape legend: N new items, R item rows, D vector width, K candidates.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet

from passerelle.arrays import Float32Array
from passerelle.arrow import write_table
from passerelle.bundle import (
    CANDIDATE_ENCODER,
    INDEX,
    ITEM_ENCODING,
    RANKER,
    Bundle,
    BundleManifest,
    ItemEncoding,
    bundle_id,
    open_bundle,
)
from passerelle.config import validate
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.features import RankingFeatures
from passerelle.files import new_directory, refuse_existing
from passerelle.id_map import UNKNOWN_ROW, check_ids
from passerelle.ids import ITEM_ID, PADDING_ROW, USER_ID
from passerelle.manifest import provenance, write_manifest
from passerelle.progress import Progress, silent
from passerelle.topk import exact_topk
from training.text import TextEncoder, with_text_vectors

BATCH = 4096
TOP = 10
LIBRARIES = ("onnxruntime", "numpy", "pyarrow")
CHANGED = ("item_vectors.npy", "items.arrow", "popularity.arrow", "reference.arrow")


@dataclass(frozen=True)
class AddedItems:
    """What was made of a table of new items."""

    bundle: Bundle
    num_added: int
    unknown_values: dict[str, int]
    """Categorical values that training never saw, by column: they count as its unknown one."""


def add_items(
    path: Path,
    items: pa.Table,
    out: Path,
    *,
    where: str = "items",
    overwrite: bool = False,
    progress: Progress = silent,
) -> AddedItems:
    """Write a bundle that has these items, too.

    Args:
        path: bundle of a model with a candidate tower.
        items: `item_id` and the item features, as `items.arrow` of the bundle has them.
        out: the new bundle.
        where: what the table is called in what is said of it.

    Raises:
        UserError: the bundle has no candidate tower, an id is there already, missing or twice, a column that the tower reads is missing or
            has another type, the text encoder is not the one of the bundle, or `out` exists.
    """
    refuse_existing(out, overwrite=overwrite)
    bundle = open_bundle(path)
    if CANDIDATE_ENCODER not in bundle.manifest.networks:
        raise UserError(
            f"{path}: its model has vectors of the items it was trained on alone: new ones need a candidate tower (two_tower)"
        )
    encoding = validate(
        ItemEncoding,
        json.loads((path / ITEM_ENCODING).read_text(encoding="utf-8")),
        str(path / ITEM_ENCODING),
    )
    table = _like_the_bundle(bundle, items, encoding, where)
    vectors_ND, unknown = _encode(path, bundle.manifest.dim, table, encoding, progress)
    nobody_N = np.zeros(table.num_rows)
    grown = replace(
        bundle,
        vectors_RD=np.concatenate([bundle.vectors_RD, vectors_ND]),
        items=pa.concat_tables([bundle.items, table]),
        counts_R=np.concatenate([bundle.counts_R, nobody_N]),
        recent_counts_R=np.concatenate([bundle.recent_counts_R, nobody_N]),
    )
    reference = _reference(grown, progress)
    with new_directory(out, overwrite=overwrite) as scratch:
        for name in bundle.manifest.files:
            if name not in CHANGED:
                shutil.copyfile(path / name, scratch / name)
        if (path / INDEX).is_dir():  # of the vectors that were there: retrievers scan those that come after
            shutil.copytree(path / INDEX, scratch / INDEX)
        np.save(scratch / "item_vectors.npy", grown.vectors_RD, allow_pickle=False)
        write_table(scratch / "items.arrow", grown.items)
        write_table(
            scratch / "popularity.arrow",
            pa.table({"count": grown.counts_R, "recent_count": grown.recent_counts_R}),
        )
        write_table(scratch / "reference.arrow", reference)
        write_manifest(scratch, _manifest(grown, scratch))
    return AddedItems(open_bundle(out, verify=False), table.num_rows, unknown)


def read_items(path: Path) -> pa.Table:
    """The table of a Parquet file.

    Raises:
        UserError: there is none.
    """
    try:
        return pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file ({error})") from None


def _like_the_bundle(bundle: Bundle, items: pa.Table, encoding: ItemEncoding, where: str) -> pa.Table:
    """The items with the bundle's columns and types; what the tower does not read may be missing."""
    wanted = [ITEM_ID, *(column.name for column in encoding.encoding.columns)]
    if missing := [name for name in wanted if name not in items.column_names]:
        raise UserError(
            f"{where}: column {', '.join(missing)} is missing; the tower reads {', '.join(wanted)}"
        )
    columns = {}
    for field in bundle.items.schema:
        if field.name not in items.column_names:
            columns[field.name] = pa.nulls(items.num_rows, field.type)
            continue
        try:
            columns[field.name] = items.column(field.name).cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{where}: column {field.name!r} holds {items.column(field.name).type}, not {field.type} ({error})"
            ) from None
    ids = columns[ITEM_ID].combine_chunks()
    check_ids(ids, ITEM_ID, where)
    there = np.flatnonzero(bundle.item_ids.rows(ids) != UNKNOWN_ROW)
    if len(there):
        raise UserError(
            f"{where}: {len(there)} of the items are in {bundle.path} already, the first is {ids[there[0]].as_py()!r}"
        )
    return pa.table(columns)


def _encode(
    path: Path, dim: int, table: pa.Table, encoding: ItemEncoding, progress: Progress
) -> tuple[Float32Array, dict[str, int]]:
    """Vectors [N, D] of what the features say, and how many values are unknown, by column."""
    if encoding.text_encoder is not None:
        encoder = TextEncoder(encoding.text_encoder)
        if encoder.digest != encoding.text_digest:
            raise UserError(
                f"{path}: text encoder {encoding.text_encoder!r} is not the one that its items were encoded with"
            )
        vectors = [column.name for column in encoding.encoding.columns if column.kind == "vector"]
        texts = [
            FeatureColumn(name=name, kind="text")
            for name in vectors
            if pa.types.is_string(table.schema.field(name).type)
        ]
        table, _ = with_text_vectors(table, texts, encoder, progress)
    encoded = encoding.encoding.encode(table)
    session = _session(path, CANDIDATE_ENCODER)
    vectors_ND = np.empty((table.num_rows, dim), dtype=np.float32)
    for start in range(0, table.num_rows, BATCH):
        rows = slice(start, start + BATCH)
        codes_NS, numbers_NF = encoded.codes_NS[rows], encoded.numbers_NF[rows]
        inputs = {
            "id_vector": np.zeros((len(codes_NS), dim), dtype=np.float32),
            "codes": codes_NS,
            "numbers": numbers_NF,
        }
        vectors_ND[rows] = session.run(["vector"], inputs)[0]
        progress("encode items", min(start + BATCH, table.num_rows), table.num_rows)
    return vectors_ND, encoded.unknown


def _reference(bundle: Bundle, progress: Progress) -> pa.Table:
    """What `reference.arrow` holds, for the grown catalogue: queries are as they were, what they find is not."""
    manifest, before = bundle.manifest, bundle.reference()
    features = RankingFeatures(
        bundle.vectors_RD, bundle.counts_R, bundle.recent_counts_R, bundle.items, manifest.item_features
    )
    ranker = _session(bundle.path, RANKER)
    found: dict[str, list[Any]] = {
        name: [] for name in ("candidate_rows", "candidate_scores", "top_rows", "top_scores")
    }
    for done, user in enumerate(before.select([USER_ID, "timestamp_ms", "query"]).to_pylist(), start=1):
        history = bundle.history(bundle.user_ids.row(user[USER_ID]))
        allowed_1R = np.ones((1, len(bundle.vectors_RD)), dtype=bool)
        allowed_1R[0, bundle.seen(history)] = False
        query_1D = np.array([user["query"]], dtype=np.float32)
        rows_1K, scores_1K = exact_topk(query_1D, bundle.vectors_RD, manifest.num_candidates, allowed_1R)
        there_K = rows_1K[0] != PADDING_ROW
        rows_K, scores_K = rows_1K[0][there_K], scores_1K[0][there_K]
        features_KF = features.compute(
            rows_K, scores_K, history.item_rows_L[-manifest.max_history :], user["timestamp_ms"]
        )
        ranked_K = ranker.run(["score"], {"features": features_KF})[0][:, 0]
        best = np.argsort(-ranked_K, kind="stable")[:TOP]
        values = (rows_K.astype(np.int32), scores_K, rows_K[best].astype(np.int32), ranked_K[best])
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
        progress("reference", done, before.num_rows)
    table = before
    for name, lists in found.items():
        place = before.column_names.index(name)
        table = table.set_column(place, name, pa.array(lists, before.schema.field(name).type))
    return table


def _manifest(bundle: Bundle, scratch: Path) -> BundleManifest:
    """That of the bundle it was made from, with another catalogue."""
    common = provenance(BundleManifest, scratch, list(bundle.manifest.files), LIBRARIES)
    changed = {"bundle_id": bundle_id(common["files"]), "num_items": bundle.items.num_rows}
    parity = {"onnxruntime": bundle.manifest.parity["onnxruntime"]}  # of other layers, `publish` finds out
    return bundle.manifest.updated(
        **{**common, "libraries": {**bundle.manifest.libraries, **common["libraries"]}},
        **changed,
        parity=parity,
    )


def _session(path: Path, network: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path / f"{network}.onnx", providers=["CPUExecutionProvider"])
