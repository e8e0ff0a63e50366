"""What learns in a stage: each part frozen, with LoRA, or in full. Called by `lvlm.train.loop` before the optimizer is
made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lvlm.errors import InputError
from lvlm.model.checkpoints import parts
from lvlm.model.economy import checkpoint_blocks, fuse_norms, train_mode
from lvlm.model.lora import ADAPTER, add_lora, lora_config, lora_layers, merge_lora
from lvlm.model.weights import halve, numel, quantised_layers
from lvlm.settings import LoraSettings, Part, StageConfig, TrainedParts

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm


@dataclass(frozen=True, slots=True)
class PartCount:
    """One part of a model in a stage: how it learns, its parameters, and how many of them learn."""

    part: str
    mode: str
    parameters: int
    trainable: int


def prepare_training(
    model: Lvlm,
    stage: StageConfig,
    *,
    seed: int,
    name: str = "",
    precision: str = "fp32",
    checkpointing: bool = False,
) -> list[PartCount]:
    """Set what learns in the stage `name`, in place: gradients on, and float32, for exactly those tensors. Returns
    counts by part.

    LoRA that is already there is continued or, with `start_lora` `merge`, merged and drawn anew; a part that goes on
    in `full` gets it merged first. The draw of a new LoRA depends on `seed` and layer names only, so that arms share
    it, and after a merge on `name` too. Under `precision` `bf16` matrices that are frozen are held in bfloat16. With
    `checkpointing`, blocks through which gradients pass are computed again in the backward pass.
    """
    _check_merge(model, stage)
    counts = []
    for part_name, part in parts(model).items():
        mode: Part = getattr(stage.train, part_name)
        _prepare(part, name=part_name, mode=mode, stage=stage, seed=seed, stream=f"lora.{name}")
        fuse_norms(part)
        learning = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        counts.append(PartCount(part_name, mode, sum(numel(parameter) for parameter in part.parameters()), learning))
    model.config.halved = None
    if precision == "bf16":
        held = [name for name in ("llm", "tower") if getattr(stage.train, name) != "full"]
        for part_name in held:
            halve(parts(model)[part_name])
        model.config.halved = held or None
    model.vision_tower.checkpoint(checkpointing and stage.train.tower != "frozen")
    checkpoint_blocks(model.language_model, checkpointing)
    return counts


def set_train_mode(model: Lvlm, train: TrainedParts) -> None:
    """Dropout acts in the parts that learn; a frozen part computes as it does in evaluation."""
    model.eval()
    for name, part in parts(model).items():
        train_mode(part, getattr(train, name) != "frozen")


def describe(counts: list[PartCount]) -> list[str]:
    """The counts as lines to print before step 0."""
    lines = [f"{'part':<8} {'mode':<7} {'parameters':>14} {'learning':>14}"]
    return lines + [f"{row.part:<8} {row.mode:<7} {row.parameters:>14,} {row.trainable:>14,}" for row in counts]


def _check_merge(model: Lvlm, stage: StageConfig) -> None:
    """Raise where a LoRA is to be merged and there is none; stages before this one were looked at with the config."""
    with_lora = [name for name in ("tower", "llm") if getattr(stage.train, name) == "lora"]
    if stage.start_lora == "merge" and not any(lora_layers(parts(model)[name]) for name in with_lora):
        raise InputError(
            f"start_lora is merge but the model has no LoRA in {' or '.join(with_lora) or 'a part that trains one'} to "
            "merge. Set start_lora=continue."
        )


def _prepare(part: nn.Module, *, name: str, mode: Part, stage: StageConfig, seed: int, stream: str) -> None:
    if mode == "full" and quantised_layers(part):
        raise InputError(f"The {name} is quantised, and quantised weights cannot learn. Train it with lora.")
    lora, has_lora, merges = stage.lora, bool(lora_layers(part)), stage.start_lora == "merge"
    if has_lora and (mode == "full" or (mode == "lora" and merges)):
        merge_lora(part)
    if mode == "lora":
        if has_lora and not merges:
            _check_same(part, name=name, lora=lora)
        else:
            stream = stream if has_lora else "lora"
            add_lora(part, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, seed=seed, stream=stream)
    for key, parameter in part.named_parameters():
        learns = mode == "full" or (mode == "lora" and ".lora_" in key)
        parameter.requires_grad_(learns)
        if learns and parameter.dtype != torch.float32:  # bf16 weights swallow small updates
            parameter.data = parameter.data.float()


def _check_same(part: nn.Module, *, name: str, lora: LoraSettings) -> None:
    known = lora_config(part)
    # Of the layers, not of the config, which has more ways to set a rank and a scale (use_rslora, alpha_pattern).
    found = {(layer.r[ADAPTER], layer.scaling[ADAPTER]) for layer in lora_layers(part).values()}
    if found != {(lora.r, lora.alpha / lora.r)} or known.lora_dropout != lora.dropout:
        special = {key: getattr(known, key) for key in ("use_rslora", "rank_pattern", "alpha_pattern")}
        also = "".join(f", {key}={value}" for key, value in special.items() if value)
        raise InputError(
            f"The {name} already has a LoRA with r={known.r}, alpha={known.lora_alpha}, dropout={known.lora_dropout}"
            f"{also} from an earlier stage, and this stage asks for r={lora.r}, alpha={lora.alpha}, "
            f"dropout={lora.dropout}. Use the same settings in both, or start_lora=merge."
        )
