"""How many floating-point operations training a denoiser needs, counted by torch on tensors without storage. Called by
`lvlm.paint.stage`, and by `sweeps.amounts` to plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from lvlm.config import RunConfig
    from lvlm.paint.batches import PaintBatches
    from lvlm.paint.painter import Painter
    from lvlm.paint_settings import Learning, PaintConfig


def painting_flops(painter: Painter, train: Learning, batches: PaintBatches) -> float:
    """Of all samples of a stage: the denoiser forward and backward, no gradient of a frozen weight, with captions of
    the mean length. The language model and the VAE, which run once for each caption and picture, are left out."""
    tokens = max(1, round(float(batches.plan.per_sample()[:, 0].mean())))
    config, width = dict(painter.denoiser.config), painter.states.width
    of_size: dict[int, float] = {}
    total = 0.0
    for step in range(batches.plan.steps):
        size = batches.size(step)
        if size not in of_size:
            of_size[size] = sample_flops(config, painter.signal_shape(size), tokens, width, train)
        total += of_size[size] * len(batches.plan.step_entries(step))
    return total


def planned_flops(config: RunConfig, stage: PaintConfig, *, tokens: int) -> float:
    """Of one sample of a stage that is not there yet, at the size in which its pictures end up."""
    from transformers import AutoConfig

    from lvlm.model.backbones import resolve
    from lvlm.paint.denoisers import read_shape

    shape = read_shape(Path(resolve(stage.denoiser, seed=config.seed)), "UNet2DConditionModel")
    side = int(shape["sample_size"])
    if (pixels := stage.later_image_size or stage.image_size) is not None:
        blocks = [] if stage.vae is None else read_shape(Path(stage.vae), "AutoencoderKL")["block_out_channels"]
        side = pixels // 2 ** max(0, len(blocks) - 1)
    source = config.model.checkpoint or resolve(config.model.llm, seed=config.seed)
    llm = AutoConfig.from_pretrained(source)
    width = int(llm.get_text_config().hidden_size)
    return sample_flops(shape, (int(shape["in_channels"]), side, side), tokens, width, stage.train)


def sample_flops(
    shape: dict[str, Any], signal: tuple[int, int, int], tokens: int, width: int, train: Learning
) -> float:
    """Of one sample."""
    from lvlm.paint.denoisers import build, set_learning

    with torch.device("meta"):
        model = build({key: value for key, value in shape.items() if not key.startswith("_")}, width=width)
        set_learning(model, train)
        with FlopCounterMode(display=False) as counter:
            noisy, when = torch.randn(1, *signal), torch.zeros(1, dtype=torch.long)
            model(noisy, when, encoder_hidden_states=torch.randn(1, tokens, width)).sample.sum().backward()
    return float(counter.get_total_flops())
