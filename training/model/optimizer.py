"""AdamW, and how its learning rate rises and falls."""

from collections.abc import Collection, Iterable
from functools import partial

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from training.config import OptimizerConfig

FINAL_LEARNING_RATE_SCALE = 0.05


def make_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[tuple[str, nn.Parameter]],
    tables: Collection[str],
    total_steps: int,
) -> OptimizerLRSchedulerConfig:
    """What Lightning is to be given.

    Args:
        parameters: with their names.
        tables: names of those that are tables of items, which do not decay.
        total_steps: of the whole schedule.
    """
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in parameters:
        (decayed if parameter.ndim > 1 and name not in tables else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(learning_rate_scale, config, total_steps=total_steps)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learning_rate_scale(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The part of `config.learning_rate` that a step has."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    decay_steps = config.decay_fraction * total_steps
    into_decay = step - (total_steps - decay_steps)
    if decay_steps == 0 or into_decay <= 0:
        return 1.0
    return 1 - (1 - FINAL_LEARNING_RATE_SCALE) * min(1.0, into_decay / decay_steps)
