"""Trains the tiny denoiser of the built-in world on English captions, with a table of words for its text encoder: what
the stage `paint` starts from. Called by `python -m lvlm backbones --parts denoiser`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lvlm.backbones.build import TRAINING_FILE, Say, finished, is_made, progress_of
from lvlm.backbones.lm import stream
from lvlm.data.worlds.canvas import PIXELS, SCENES, TRAINING_SCENES, attributes, draw, draw_all
from lvlm.data.worlds.lexicon import load_lexicon
from lvlm.data.worlds.scenes import Scene
from lvlm.evaluate.metrics import words
from lvlm.paint.diffusion import Diffusion, errors, target
from lvlm.paint.reader import AttributeReader, Attributes
from lvlm.records import write_json

PIVOT = "en"
"""The language of the captions that the shipped denoiser has read."""
WORDS_FILE = "words.safetensors"


@dataclass(frozen=True)
class DenoiserRecipe:
    """Sizes and hyper-parameters, the same for every draw."""

    steps: int = 3_000
    batch: int = 32
    lr: float = 2e-3
    warmup_steps: int = 100
    caption_dropout: float = 0.1
    averaged: float = 0.995
    """Decay of the running mean of the weights, which is what is kept."""
    channels: tuple[int, int] = (24, 48)
    width: int = 48


def tiny_config(recipe: DenoiserRecipe) -> dict[str, Any]:
    """The shape of the tiny denoiser, as `UNet2DConditionModel` takes it: attention at half the resolution only."""
    return {
        "sample_size": PIXELS, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "block_out_channels": list(recipe.channels), "cross_attention_dim": recipe.width, "norm_num_groups": 8,
        "attention_head_dim": 4, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip


class WordTable(nn.Module):
    """A text encoder that knows the words of one language and nothing of their order."""

    def __init__(self, captions: Sequence[str], width: int) -> None:
        super().__init__()
        self.known = {word: place for place, word in enumerate(sorted({w for c in captions for w in words(c)}), 1)}
        self.length = max(len(words(caption)) for caption in captions)
        self.table = nn.Embedding(len(self.known) + 1, width)

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(captions, length): 0 is padding, and an empty caption is nothing else."""
        rows = [[self.known[word] for word in words(caption)] for caption in captions]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.table(ids)
        return found


def train_tiny(
    recipe: DenoiserRecipe, *, seed: int, on_progress: Callable[[dict[str, float]], None] | None = None
) -> tuple[Any, WordTable]:
    """(denoiser, its table of words): the running means of one draw, whose seed sets weights, pictures and noise."""
    from diffusers import UNet2DConditionModel

    diffusion = Diffusion()
    scheduler, lexicon = diffusion.scheduler(), load_lexicon(PIVOT)
    torch.manual_seed(stream(seed, "denoiser"))
    model = UNet2DConditionModel(**tiny_config(recipe))
    table = WordTable([lexicon.caption(scene) for scene in SCENES], recipe.width)
    both = nn.ModuleDict({"denoiser": model, "table": table})
    optimizer = torch.optim.AdamW(both.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / recipe.warmup_steps, 0.02 + 0.98 * (1 - step / recipe.steps)),
    )
    mean = torch.optim.swa_utils.AveragedModel(
        both,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.averaged),  # type: ignore[no-untyped-call]
    )
    rng = np.random.default_rng(stream(seed, "denoiser pictures"))
    ids = {scene: row for scene, row in zip(SCENES, table.ids([lexicon.caption(s) for s in SCENES]), strict=True)}
    started = time.monotonic()
    for step in range(recipe.steps):
        scenes = [TRAINING_SCENES[place] for place in rng.integers(len(TRAINING_SCENES), size=recipe.batch)]
        clean = to_signal(draw_all(scenes, rng))
        told = torch.stack([ids[scene] for scene in scenes])
        told[torch.from_numpy(rng.random(recipe.batch) < recipe.caption_dropout)] = 0
        noise, when = torch.randn_like(clean), torch.randint(diffusion.timesteps, (recipe.batch,))
        predicted = model(scheduler.add_noise(clean, noise, when), when, table(told)).sample
        loss: Any = errors(predicted, target(scheduler, diffusion.prediction, clean, noise, when)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        mean.update_parameters(both)
        if on_progress and (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            on_progress({"step": step + 1, "steps": recipe.steps, "loss": loss.item(), "seconds": seconds})
    both.load_state_dict(mean.module.state_dict())
    return model.eval(), table.eval()


def to_signal(pictures: np.ndarray) -> Tensor:
    """(pictures, side, side, 3) bytes -> (pictures, 3, side, side) from -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def measure_tiny(model: Any, table: WordTable, *, guidance: float = 3.0, steps: int = 20) -> dict[str, float]:
    """Percent of the prompts whose picture shows every attribute, and each of them, by the attribute reader."""
    sampler, lexicon = Diffusion().sampler(steps, clip=True), load_lexicon(PIVOT)
    noise = torch.randn((len(SCENES), 3, PIXELS, PIXELS), generator=torch.Generator().manual_seed(0))
    told = table(table.ids([lexicon.caption(scene) for scene in SCENES]))
    nothing = table(torch.zeros(len(SCENES), table.length, dtype=torch.long))
    for when in sampler.timesteps:
        plain, guided = model(noise, when, nothing).sample, model(noise, when, told).sample
        noise = sampler.step(plain + guidance * (guided - plain), when, noise).prev_sample
    reader = AttributeReader.of_scenes([(np.asarray(draw(scene)), attributes(scene)) for scene in SCENES])
    pictures = ((noise + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return score_tiny(reader.read(pictures), SCENES)


def score_tiny(read: Sequence[Attributes], scenes: Sequence[Scene]) -> dict[str, float]:
    """Percent right, of all attributes at once and of each."""
    wanted = [attributes(scene) for scene in scenes]
    right = {kind: [own[kind] == gold[kind] for own, gold in zip(read, wanted, strict=True)] for kind in wanted[0]}
    right["all"] = [own == gold for own, gold in zip(read, wanted, strict=True)]
    return {kind: round(100 * float(np.mean(found)), 1) for kind, found in right.items()}


def build_denoiser(folder: Path, *, draws: Sequence[int], say: Say = print, scale: float = 1.0) -> None:
    """Train the draws of `tiny-unet` that `folder` lacks, measure them, and write them in 16 bits."""
    recipe = DenoiserRecipe()
    recipe = dataclasses.replace(recipe, steps=max(1, int(recipe.steps * scale)))
    for draw_number in draws:
        folder_of = folder / f"tiny-unet-{draw_number}"
        settings = dataclasses.asdict(recipe) | {"channels": list(recipe.channels)}
        making: dict[str, Any] = {"seed": draw_number, "language": PIVOT, "recipe": settings}
        if is_made(folder_of, making):
            say(f"{folder_of.name}: already there")
            continue
        model, table = train_tiny(recipe, seed=draw_number, on_progress=progress_of(folder_of.name, say))
        found = measure_tiny(model, table)
        say(f"{folder_of.name}: percent right {found}")
        with finished(folder_of) as unfinished:
            model.half().save_pretrained(unfinished)
            Diffusion().save(unfinished)
            save_file({"table": table.table.weight.detach().half()}, unfinished / WORDS_FILE)
            write_json(unfinished / TRAINING_FILE, making | {"percent_right": found})
