"""AdamW and the schedule of its learning rate."""

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
    """Returns the optimizer and the schedule in the form that Lightning takes.

    Args:
        parameters: names and parameters to optimize.
        tables: names of item tables, which have no weight decay.
        total_steps: length of the schedule.
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
    """Returns the factor of the learning rate at a step: a linear warmup, 1, then a linear decay."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    decay_steps = config.decay_fraction * total_steps
    into_decay = step - (total_steps - decay_steps)
    if decay_steps == 0 or into_decay <= 0:
        return 1.0
    return 1 - (1 - FINAL_LEARNING_RATE_SCALE) * min(1.0, into_decay / decay_steps)
