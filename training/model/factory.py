"""Builds the model of a recipe for a dataset.

Shape legend: R item rows, I items, S code slots of a row, F numbers of a row.
"""

import numpy as np
import torch
from torch import Tensor

from passerelle.dataset import Dataset, FeatureColumn
from passerelle.encoding import fit_encoding
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split
from training.config import Recipe
from training.data.statistics import num_events, sampler_counts
from training.model.items import ItemFeatures, make_sparse_table
from training.model.query_features import chosen_query_features, encode_query_features
from training.model.sequence_model import SequenceModel
from training.model_config import ItemsConfig
from training.tables.base import EmbeddingTable
from training.text import TextEncoder, with_text_vectors


def build_training_model(
    dataset: Dataset, split: Split, config: Recipe, total_steps: int, *, num_shards: int = 1
) -> SequenceModel:
    """Returns the untrained model of a recipe, with the counts of its sampler and a table to be trained.

    Args:
        split: decides the training events.
        total_steps: steps in `max_epochs`, for the learning-rate schedule.
        num_shards: ranks that share the rows of a sparse table.

    Raises:
        UserError: the recipe names item features that the dataset does not have.
    """
    counts_R = torch.from_numpy(sampler_counts(dataset, split, config))
    return build_model(
        dataset,
        split,
        config,
        counts_R,
        make_sparse_table(config, dataset.num_rows, num_shards=num_shards),
        total_steps,
    )


def build_model(
    dataset: Dataset,
    split: Split,
    config: Recipe,
    counts_R: Tensor,
    ids: EmbeddingTable | None = None,
    total_steps: int = 1,
) -> SequenceModel:
    """Returns the untrained model of a recipe.

    Args:
        split: decides the training events, to which features are encoded.
        counts_R: float64 counts of each item row for the sampler; zeros for a model that is not trained.
        ids: the id table, for a recipe with `items.table = "sparse"`.
        total_steps: steps in `max_epochs`, for the learning-rate schedule.

    Raises:
        UserError: the recipe names features that the dataset does not have.
    """
    item_features, query_features = None, None
    if config.items.kind == "tower":
        item_features = encode_item_features(dataset, split, config.items)
    if config.query.time_features or any(chosen_query_features(dataset, config.query)):
        query_features = encode_query_features(dataset, split, config.query)
    num_event_types = len(dataset.manifest.event_types)
    return SequenceModel(
        config, counts_R, total_steps, item_features, query_features, num_event_types=num_event_types, ids=ids
    )


def check_features(dataset: Dataset, config: Recipe) -> None:
    """Checks the features that a recipe names, before any work.

    Raises:
        UserError: the recipe names features that the dataset does not have.
    """
    if config.items.kind == "tower":
        chosen_item_features(dataset, config.items)
    chosen_query_features(dataset, config.query)


def encode_item_features(dataset: Dataset, split: Split, config: ItemsConfig) -> ItemFeatures:
    """Returns features of all items, by an encoding fitted to those with training events.

    Raises:
        UserError: a feature is not declared, or is text without an encoder, or the encoder is unknown.
    """
    known_I = num_events(dataset, split)[FIRST_ITEM_ROW:] > 0
    items, features = dataset.items, chosen_item_features(dataset, config)
    if config.text_encoder is not None:
        items, features = with_text_vectors(items, features, TextEncoder(config.text_encoder))
    encoding = fit_encoding(items.filter(known_I), features, config.min_value_items)
    encoded = encoding.encode(items)
    return ItemFeatures(
        encoding,
        _with_special_rows(torch.from_numpy(encoded.codes_NS)),
        _with_special_rows(torch.from_numpy(encoded.numbers_NF)),
        torch.from_numpy(np.concatenate([np.ones(FIRST_ITEM_ROW, dtype=bool), known_I])),
    )


def chosen_item_features(dataset: Dataset, config: ItemsConfig) -> tuple[FeatureColumn, ...]:
    """Returns the item features that a recipe uses.

    Raises:
        UserError: a named one is not declared, or is text without an encoder.
    """
    usable = {
        feature.name: feature
        for feature in dataset.manifest.item_features
        if feature.kind != "text" or config.text_encoder
    }
    names = tuple(usable) if config.features is None else config.features
    if missing := [name for name in names if name not in usable]:
        known = ", ".join(usable) or "none"
        raise UserError(
            f"items.features: {', '.join(missing)}: no item feature of {dataset.path} that a tower can use; "
            f"there are: {known}"
        )
    return tuple(usable[name] for name in names)


def _with_special_rows(values: Tensor) -> Tensor:
    """Returns values of items after zeros for the special rows."""
    return torch.cat([values.new_zeros(FIRST_ITEM_ROW, *values.shape[1:]), values])
