"""The loss of a step, as a recipe wants it.

Shape legend: M target positions, D width.
"""

from dataclasses import replace

from torch import Tensor

from training.data.batches import Batch
from training.loss_config import LossConfig
from training.losses.full_softmax import full_softmax
from training.losses.inputs import LossInputs
from training.losses.sampled import gbce, sampled_softmax
from training.losses.samplers import Negatives
from training.model.items import StepItems


def loss_sum(
    config: LossConfig,
    query_MD: Tensor,
    items: StepItems,
    batch: Batch,
    negatives: Negatives | None,
    *,
    num_items: int,
) -> Tensor:
    """Sum over this rank's targets, each by its weight.

    Args:
        items: with vectors of all targets and negatives.
        negatives: none where the loss looks at every item.
        num_items: of the catalogue.
    """
    inputs = LossInputs(
        query_MD, items.vectors.candidates_UD, items.places(batch.target_rows_M), batch.weights_M
    )
    if config.kind == "full":
        return full_softmax(inputs, temperature=config.temperature, max_logits=config.max_logits)
    assert negatives is not None
    negatives = replace(negatives, rows_SN=items.places(negatives.rows_SN))
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
