"""Add items to a bundle without training: the candidate tower computes their vectors from their features.

A bundle is never changed: a new one is written, with the same networks.
The reference is computed again, because a new item may be among the best of a reference user.

Shape legend: N new items, R item rows, D vector width, C candidates, F features.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from passerelle.arrays import Float32Array
from passerelle.bundle import (
    CANDIDATE_ENCODER,
    RANKER,
    TOP_K,
    Bundle,
    ItemEncoding,
    ReferenceUser,
    contents_of,
    open_bundle,
    write_bundle,
)
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.files import refuse_existing
from passerelle.id_map import UNKNOWN_ROW, check_ids
from passerelle.ids import ITEM_ID, PADDING_ROW
from passerelle.manifest import library_versions
from passerelle.progress import Progress, silent
from passerelle.topk import exact_topk
from training.export.onnx_session import open_session
from training.text import TextEncoder, with_text_vectors

BATCH = 4096
LIBRARIES = ("onnxruntime", "numpy", "pyarrow")


@dataclass(frozen=True)
class AddedItems:
    """A bundle with new items, and what was found in their table."""

    bundle: Bundle
    num_added: int
    unknown_values: dict[str, int]
    """Number of categorical values that training never saw, by column; they are encoded as unknown."""


def add_items(
    path: Path,
    items: pa.Table,
    out: Path,
    *,
    where: str = "items",
    overwrite: bool = False,
    progress: Progress = silent,
) -> AddedItems:
    """Write a bundle that has these items too.

    Args:
        path: bundle of a model with a candidate tower.
        items: `item_id` and the item features, as `items.arrow` of the bundle has them.
        out: the new bundle.
        where: name of the table in messages.

    Raises:
        UserError: the bundle has no candidate tower; an id is in the bundle already, missing or repeated;
            a column that the tower reads is missing or has another type;
            the text encoder is not the one of the bundle; or `out` exists.
    """
    refuse_existing(out, overwrite=overwrite)
    bundle = open_bundle(path)
    contents = contents_of(bundle)
    encoding = contents.item_encoding
    if encoding is None:
        raise UserError(
            f"{path}: its model has vectors of the items it was trained on alone: "
            "new ones need a candidate tower (two_tower)"
        )
    table = _like_the_bundle(bundle, items, encoding, where)
    vectors_ND, unknown = _encode(bundle, table, encoding, progress)
    zeros_N = np.zeros(table.num_rows)
    grown = replace(
        bundle,
        vectors_RD=np.concatenate([bundle.vectors_RD, vectors_ND]),
        items=pa.concat_tables([bundle.items, table]),
        counts_R=np.concatenate([bundle.counts_R, zeros_N]),
        recent_counts_R=np.concatenate([bundle.recent_counts_R, zeros_N]),
    )
    # `publish` measures the parity of the other layers again.
    parity = {"onnxruntime": bundle.manifest.parity["onnxruntime"]}
    # The index stays that of the old vectors: retrievers scan those that come after.
    written = write_bundle(
        out,
        replace(
            contents,
            vectors_RD=grown.vectors_RD,
            items=grown.items,
            counts_R=grown.counts_R,
            recent_counts_R=grown.recent_counts_R,
            reference=_reference(grown, progress),
            description={**contents.description, "parity": parity},
            libraries={**contents.libraries, **library_versions(LIBRARIES)},
        ),
        overwrite=overwrite,
    )
    return AddedItems(written, table.num_rows, unknown)


def read_items(path: Path) -> pa.Table:
    """Returns the table of a Parquet file.

    Raises:
        UserError: the file is missing or is not Parquet.
    """
    try:
        return pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file ({error})") from None


def _like_the_bundle(bundle: Bundle, items: pa.Table, encoding: ItemEncoding, where: str) -> pa.Table:
    """Returns the items with the bundle's columns and types; only columns that
    the tower reads must be there.
    """
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
                f"{where}: column {field.name!r} holds {items.column(field.name).type}, "
                f"not {field.type} ({error})"
            ) from None
    ids = columns[ITEM_ID].combine_chunks()
    check_ids(ids, ITEM_ID, where)
    known = np.flatnonzero(bundle.item_ids.rows(ids) != UNKNOWN_ROW)
    if len(known):
        raise UserError(
            f"{where}: {len(known)} of the items are in {bundle.path} already, "
            f"the first is {ids[known[0]].as_py()!r}"
        )
    return pa.table(columns)


def _encode(
    bundle: Bundle, table: pa.Table, encoding: ItemEncoding, progress: Progress
) -> tuple[Float32Array, dict[str, int]]:
    """Returns the vectors [N, D] of the items' features, and the number of unknown values by column."""
    dim = bundle.manifest.dim
    if encoding.text_encoder is not None:
        encoder = TextEncoder(encoding.text_encoder)
        if encoder.digest != encoding.text_digest:
            raise UserError(
                f"{bundle.path}: text encoder {encoding.text_encoder!r} "
                "is not the one that its items were encoded with"
            )
        vectors = [column.name for column in encoding.encoding.columns if column.kind == "vector"]
        texts = [
            FeatureColumn(name=name, kind="text")
            for name in vectors
            if pa.types.is_string(table.schema.field(name).type)
        ]
        table, _ = with_text_vectors(table, texts, encoder, progress)
    encoded = encoding.encoding.encode(table)
    session = open_session(bundle.path / f"{CANDIDATE_ENCODER}.onnx")
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


def _reference(bundle: Bundle, progress: Progress) -> list[ReferenceUser]:
    """Returns the reference for the grown catalogue: the same queries, with the new answers."""
    manifest = bundle.manifest
    features = bundle.ranking_features()
    ranker = open_session(bundle.path / f"{RANKER}.onnx")
    users = bundle.reference().users()
    answered = []
    for done, user in enumerate(users, start=1):
        history = bundle.history(bundle.user_ids.row(user.user_id))
        allowed_1R = np.ones((1, len(bundle.vectors_RD)), dtype=bool)
        allowed_1R[0, bundle.seen(history)] = False
        rows_1C, scores_1C = exact_topk(
            user.query_D[None], bundle.vectors_RD, manifest.num_candidates, allowed_1R
        )
        found_C = rows_1C[0] != PADDING_ROW
        rows_C, scores_C = rows_1C[0][found_C], scores_1C[0][found_C]
        features_CF = features.compute(
            rows_C, scores_C, history.item_rows_L[-manifest.max_history :], user.timestamp_ms
        )
        ranked_C = ranker.run(["score"], {"features": features_CF})[0][:, 0]
        best_K = np.argsort(-ranked_C, kind="stable")[:TOP_K]
        answered.append(
            user._replace(
                candidate_rows_C=rows_C.astype(np.int32),
                candidate_scores_C=scores_C,
                top_rows_K=rows_C[best_K].astype(np.int32),
                top_scores_K=ranked_C[best_K],
            )
        )
        progress("reference", done, len(users))
    return answered
