"""What learns in a stage: each part frozen, with LoRA, or in full. Called by `lvlm.train.loop` before the optimizer is
made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lvlm.config import LoraSettings, Part, StageConfig
from lvlm.errors import InputError
from lvlm.model.checkpoints import parts
from lvlm.model.economy import fuse_norms
from lvlm.model.lora import add_lora, lora_config, lora_layers, merge_lora

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm


@dataclass(frozen=True, slots=True)
class PartCount:
    """One part of a model in a stage: how it learns, its parameters, and how many of them learn."""

    part: str
    mode: str
    parameters: int
    trainable: int


def prepare_training(model: Lvlm, stage: StageConfig, *, seed: int) -> list[PartCount]:
    """Set what learns, in place: gradients on, and float32, for exactly those tensors. Returns counts by part.

    LoRA that is already there is continued; a part that goes on in `full` gets it merged first. The draw of a new
    LoRA depends on `seed` and layer names only, so that arms share it.
    """
    counts = []
    for name, part in parts(model).items():
        mode: Part = getattr(stage.train, name)
        _prepare(part, name=name, mode=mode, lora=stage.lora, seed=seed)
        fuse_norms(part)
        learning = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        counts.append(PartCount(name, mode, sum(parameter.numel() for parameter in part.parameters()), learning))
    return counts


def describe(counts: list[PartCount]) -> list[str]:
    """The counts as lines to print before step 0."""
    lines = [f"{'part':<8} {'mode':<7} {'parameters':>14} {'learning':>14}"]
    return lines + [f"{row.part:<8} {row.mode:<7} {row.parameters:>14,} {row.trainable:>14,}" for row in counts]


def _prepare(part: nn.Module, *, name: str, mode: Part, lora: LoraSettings, seed: int) -> None:
    has_lora = bool(lora_layers(part))
    if mode == "full" and has_lora:
        merge_lora(part)
    if mode == "lora":
        if has_lora:
            _check_same(part, name=name, lora=lora)
        else:
            add_lora(part, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, seed=seed)
    for key, parameter in part.named_parameters():
        learns = mode == "full" or (mode == "lora" and ".lora_" in key)
        parameter.requires_grad_(learns)
        if learns and parameter.dtype != torch.float32:  # bf16 weights swallow small updates
            parameter.data = parameter.data.float()


def _check_same(part: nn.Module, *, name: str, lora: LoraSettings) -> None:
    known = lora_config(part)
    if (known.r, known.lora_alpha, known.lora_dropout) != (lora.r, lora.alpha, lora.dropout):
        raise InputError(
            f"The {name} already has a LoRA with r={known.r}, alpha={known.lora_alpha}, dropout={known.lora_dropout} "
            f"from an earlier stage, and this stage asks for r={lora.r}, alpha={lora.alpha}, dropout={lora.dropout}. "
            "Use the same settings in both."
        )
