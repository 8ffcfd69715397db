"""The loss of a training step, chosen by the recipe.

Shape legend: M target positions, D width, S draws, N negatives of each.
"""

from dataclasses import replace

import torch
from torch import Tensor

from training.data.batches import Batch
from training.loss_config import LossConfig
from training.losses.full_softmax import full_softmax
from training.losses.inputs import LossInputs
from training.losses.sampled import gbce, sampled_softmax
from training.losses.samplers import Negatives, Sampler
from training.model.items import StepItems


def draw_negatives(config: LossConfig, sampler: Sampler, batch: Batch) -> Negatives | None:
    """Returns the negatives of a step, the same on every rank; None for a loss without negatives."""
    if config.kind == "full":
        return None
    generator = torch.Generator().manual_seed(batch.seed)
    return sampler.draw(config.num_draws, config.num_negatives, batch.target_rows_M, generator)


def requested_rows(batch: Batch, negatives: Negatives | None) -> list[Tensor]:
    """Returns the item rows whose vectors a step needs, with repetitions."""
    return [batch.items_T, batch.target_rows_M, *([] if negatives is None else [negatives.rows_SN])]


def loss_sum(
    config: LossConfig,
    query_MD: Tensor,
    items: StepItems,
    batch: Batch,
    negatives: Negatives | None,
    *,
    num_items: int,
) -> Tensor:
    """Returns the weighted sum over this rank's targets.

    Args:
        query_MD: a query for each target.
        items: vectors of all targets and negatives, or of all items.
        negatives: None for the full softmax.
        num_items: size of the catalogue.
    """
    inputs = LossInputs(
        query_MD, items.vectors.candidates_UD, items.positions(batch.target_rows_M), batch.weights_M
    )
    if config.kind == "full":
        return full_softmax(inputs, temperature=config.temperature, max_logits=config.max_logits)
    assert negatives is not None
    negatives = replace(negatives, rows_SN=items.positions(negatives.rows_SN))
    if config.kind == "gbce":
        return gbce(
            inputs,
            negatives,
            batch.draw_assignment,
            num_items=num_items,
            calibration=config.gbce_calibration,
            temperature=config.temperature,
        )
    return sampled_softmax(
        inputs,
        negatives,
        batch.draw_assignment,
        temperature=config.temperature,
        correction=config.log_q_correction,
        correct_target=config.correct_target,
    )
