"""Trains the tiny vision tower of the emoji world, token by token: which emoji does it show? Called by
`lvlm.backbones.emoji`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample, interpolate, max_pool2d

from lvlm.backbones.lm import stream
from lvlm.backbones.vision import BACKGROUND_WEIGHT, MEAN, STD, warmup_then_cosine
from lvlm.backbones.vit import IMAGE_SIZE, PATCH_SIZE, WIDTH

PICTURE = 96  # pixels of a generated picture; a global view halves it, a tile is a quarter of it at full resolution
BANK = 64  # pixels of an emoji before it is placed
ALONE = 0.5  # of the pictures show one emoji, the others four
SCALE, SCALE_OF_FOUR = (0.25, 0.85), (0.5, 1.0)  # of the picture, of its quarter: both wider than the corpus has them
DEGREES = 60.0
PROBED = 128  # pictures of the final measure
COVERED = 0.25  # a token shows an emoji that covers this much of it


@dataclass(frozen=True)
class EmojiVitRecipe:
    """Hyper-parameters, the same for every draw."""

    steps: int = 1_500
    batch: int = 24  # pictures of a step, each with a global view and one tile
    lr: float = 1.5e-3
    warmup_steps: int = 100


def emoji_bank(folder: Path, concepts: Sequence[str]) -> Tensor:
    """(concepts, 4, `BANK`, `BANK`) from the corpus's pictures: colours times opacity, and opacity, from 0 to 1."""
    squares = []
    for concept in concepts:
        with Image.open(folder / f"{concept}.png") as image:
            picture = image.convert("RGBA")
        factor = BANK / max(picture.size)
        small = picture.resize(
            (max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), Image.Resampling.LANCZOS
        )
        square = Image.new("RGBA", (BANK, BANK))
        square.paste(small, ((BANK - small.width) // 2, (BANK - small.height) // 2))
        squares.append(np.asarray(square, dtype=np.float32) / 255.0)
    bank = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return torch.cat([bank[:, :3] * bank[:, 3:], bank[:, 3:]], dim=1)


def draw_views(bank: Tensor, rng: np.random.Generator, *, pictures: int) -> tuple[Tensor, Tensor]:
    """(pixels, labels): `(2 * pictures, 3, 48, 48)`, normalised, and `(2 * pictures, 36)`, 0 for no emoji.

    Global views first, then one tile of each picture.
    """
    canvas = _backgrounds(rng, pictures)
    shown = torch.zeros(pictures, 1, PICTURE, PICTURE)
    alone = rng.random(pictures) < ALONE
    for quarter in range(4):
        chosen = rng.integers(len(bank), size=pictures)
        layer = grid_sample(bank[torch.from_numpy(chosen)], _places(rng, alone, quarter), align_corners=False)
        if quarter:
            layer = layer * torch.from_numpy(~alone).float().view(-1, 1, 1, 1)
        opacity = layer[:, 3:]
        canvas = canvas * (1 - opacity) + layer[:, :3]
        numbers = torch.from_numpy(chosen + 1).float().view(-1, 1, 1, 1)
        shown = torch.where(opacity > 0.5, numbers, shown)
    corners = rng.integers(2, size=(pictures, 2)) * IMAGE_SIZE
    tiles = [
        (picture[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE], label[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE])
        for picture, label, (x, y) in zip(canvas, shown, corners.tolist(), strict=True)
    ]
    pixels = torch.cat([avg_pool2d(canvas, 2), torch.stack([pixels for pixels, _ in tiles])])
    labels = torch.cat(
        [_labels(shown, 2 * PATCH_SIZE), _labels(torch.stack([label for _, label in tiles]), PATCH_SIZE)]
    )
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / deviation, labels


def _labels(shown: Tensor, cell: int) -> Tensor:
    covered = avg_pool2d((shown > 0).float(), cell) > COVERED
    return torch.where(covered, max_pool2d(shown, cell), torch.zeros(())).flatten(1).long()


def _places(rng: np.random.Generator, alone: np.ndarray, quarter: int) -> Tensor:
    """The grid at which each picture samples its emoji: scaled, turned, anywhere in the picture or in its quarter."""
    count = len(alone)
    scale = np.where(alone, rng.uniform(*SCALE, count), rng.uniform(*SCALE_OF_FOUR, count) / 2)
    middle = np.where(alone[:, None], 0.0, np.array([quarter % 2 - 0.5, quarter // 2 - 0.5]))
    room = np.where(alone, 1.0, 0.5) - scale
    centre = middle + rng.uniform(-1, 1, (count, 2)) * room[:, None]
    angle = np.radians(rng.uniform(-DEGREES, DEGREES, count))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = centre.T
    matrix = np.stack([[cos, sin, -(cos * x + sin * y)], [-sin, cos, sin * x - cos * y]]).transpose(2, 0, 1)
    return affine_grid(torch.from_numpy(matrix.astype(np.float32)), [count, 4, PICTURE, PICTURE], align_corners=False)


def _backgrounds(rng: np.random.Generator, count: int) -> Tensor:
    """One colour that runs into others, with noise of any grain: (count, 3, 96, 96) from 0 to 1."""
    corners = torch.from_numpy(rng.random((count, 3, 2, 2), dtype=np.float32))
    smooth = interpolate(corners, size=PICTURE, mode="bilinear", align_corners=True)
    grain = int(rng.choice([4, 8, 16, 32]))
    noise = torch.from_numpy(rng.standard_normal((count, 3, grain, grain), dtype=np.float32))
    strength = torch.from_numpy((rng.random(count) ** 3 * 0.25).astype(np.float32)).view(-1, 1, 1, 1)
    return (smooth + strength * interpolate(noise, size=PICTURE, mode="bilinear")).clamp(0, 1)


def train_emoji_vit(
    tower: VisionTransformer,
    bank: Tensor,
    *,
    recipe: EmojiVitRecipe,
    seed: int,
    compiled: bool = True,
    on_progress: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train `tower`, in place, to tell emoji; returns the share of tokens with an emoji that a linear head then names
    right, in fresh global views (`global`) and tiles (`tile`). `seed` sets the head and the pictures."""
    torch.manual_seed(stream(seed, "emoji head"))
    tower.train()
    head = nn.Linear(WIDTH, len(bank) + 1)
    forward = torch.compile(tower.forward_features) if compiled else tower.forward_features
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    rng = np.random.default_rng(stream(seed, "emoji pictures"))
    started, running = time.monotonic(), math.nan
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warmup_then_cosine(step, recipe.steps, recipe.warmup_steps)
        pixels, labels = draw_views(bank, rng, pictures=recipe.batch)
        losses = cross_entropy(head(forward(pixels)).flatten(0, 1), labels.flatten(), reduction="none")
        weights = torch.where(labels.flatten() > 0, 1.0, BACKGROUND_WEIGHT)
        loss: Any = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if on_progress and step % 50 == 0:
            seconds = time.monotonic() - started
            on_progress({"step": step, "steps": recipe.steps, "loss": running, "seconds": seconds})
    tower.eval()
    return _accuracy(tower, head, bank, np.random.default_rng(stream(seed, "emoji probe")))


@torch.inference_mode()
def _accuracy(tower: VisionTransformer, head: nn.Linear, bank: Tensor, rng: np.random.Generator) -> dict[str, float]:
    pixels, labels = draw_views(bank, rng, pictures=PROBED)
    right = head(tower.forward_features(pixels)).argmax(-1) == labels
    return {
        view: float(correct[label > 0].float().mean())
        for view, correct, label in zip(("global", "tile"), right.chunk(2), labels.chunk(2), strict=True)
    }
