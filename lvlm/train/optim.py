"""AdamW over the trainable parameters and its learning-rate schedule as a pure function of the step. Called by
`lvlm.train.loop`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from lvlm.settings import OptimConfig

PARTS = {"vision_tower": "tower", "multi_modal_projector": "adapter", "language_model": "llm"}
"""Child of the model -> the word for it in configs and tables."""


def part_of(parameter_name: str) -> str:
    """`tower`, `adapter` or `llm`, by the child of the model that holds the parameter."""
    return PARTS[parameter_name.partition(".")[0]]


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, part_of: Callable[[str], str] = part_of
) -> torch.optim.AdamW:
    """AdamW over what learns, one group per part and decay; matrices decay, vectors (biases, norms) do not."""
    rates = {"llm": config.lr, "adapter": config.adapter_lr or config.lr, "tower": config.tower_lr or config.lr}
    own_decay = {"adapter": config.adapter_weight_decay, "tower": config.tower_weight_decay}
    decay = {part: config.weight_decay if (own := own_decay.get(part)) is None else own for part in rates}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": rates[part],
            "base_lr": rates[part],
            "weight_decay": decay[part] if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, betas=config.betas, fused=True)


def warmup_steps(config: OptimConfig, steps: int) -> int:
    """`warmup` in steps: below 1 it is a fraction of the stage, from 1 on a number of steps."""
    return min(steps, round(config.warmup * steps) if config.warmup < 1 else int(config.warmup))


def lr_factor(step: int, *, steps: int, config: OptimConfig) -> float:
    """What the base learning rate is multiplied by at `step`: linear warm-up, then constant or half a cosine towards
    zero."""
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `factor` times its base; returns the highest, for the curve."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
