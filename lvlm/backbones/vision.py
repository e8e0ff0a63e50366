"""Trains the tiny vision towers on generated pictures, token by token, and probes them. Called by `python -m lvlm
backbones`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lvlm.backbones.glyphs import draw_squares, letter_bank, shape_bank
from lvlm.backbones.lm import stream
from lvlm.backbones.vit import IMAGE_SIZE, PATCH_SIZE, WIDTH, tiny_vit
from lvlm.data.worlds.lexicon import lexicon_codes, load_lexicon
from lvlm.data.worlds.render import background, place_word, render_copies
from lvlm.data.worlds.scenes import COLOURS, PLACES, SHAPES, SIZES, sample_scene

PICTURE = 96  # pixels of a generated picture; a global view halves it, a tile is a quarter of it at full resolution
GRID = IMAGE_SIZE // PATCH_SIZE
TOKENS = GRID * GRID
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
READING_SHARE = 0.5
BACKGROUND_WEIGHT = 0.1  # loss weight of tokens that show nothing


@cache
def letters() -> tuple[str, ...]:
    """Every letter of every language's words: the classes of the letter head, after 0 for none."""
    return tuple(sorted({letter for code in lexicon_codes() for word in load_lexicon(code).words for letter in word}))


@dataclass(frozen=True)
class VitRecipe:
    """Hyper-parameters, the same for every draw."""

    pictures: int = 16_000
    batch: int = 8  # pictures of a step, each with a global view and two tiles
    lr: float = 1e-3
    warmup_steps: int = 200
    stem_steps: int = 1_500
    stem_batch: int = 128  # squares with a letter, and as many with a shape
    stem_lr: float = 3e-3


@dataclass(frozen=True)
class Views:
    """The views of some pictures with what each token shows.

    pixels: (views, 3, 48, 48); shape, colour, size, letter: (views, 36), 0 is none; place: (pictures, 4, 5) with,
    for each place, presence, shape, colour, size, count (the last four 0 where nothing is there); `per_picture`
    views of a picture, global first.
    """

    pixels: Tensor
    labels: dict[str, Tensor]
    place: Tensor
    per_picture: int


def draw_views(rng: np.random.Generator, *, pictures: int, tiles: int = 2) -> Views:
    """Generate pictures and their views: the global one and `tiles` of the four tiles."""
    pixels, labels, places = [], [], []
    for _ in range(pictures):
        image, marks, place = _reading(rng) if rng.random() < READING_SHARE else _scene(rng)
        boxes = [(0, 0, PICTURE, PICTURE)]
        half = PICTURE // 2
        for corner in rng.permutation(4)[:tiles]:
            left, top = (int(corner) % 2) * half, (int(corner) // 2) * half
            boxes.append((left, top, left + half, top + half))
        for box in boxes:
            view = image.crop(box).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(view, dtype=np.float32))
            labels.append(_label(marks, box))
        places.append(place)
    values = (np.stack(pixels) / 255.0 - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
    table = np.stack(labels)
    return Views(
        pixels=torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2).contiguous(),
        labels={name: torch.from_numpy(table[:, :, i]) for i, name in enumerate(("shape", "colour", "size", "letter"))},
        place=torch.from_numpy(np.stack(places)),
        per_picture=tiles + 1,
    )


Mark = tuple[float, float, float, float, tuple[int, int, int, int]]
"""left, top, right, bottom in pixels of the picture; shape, colour, size, letter as class numbers."""


def _scene(rng: np.random.Generator) -> tuple[Image.Image, list[Mark], np.ndarray]:
    scene = sample_scene(rng, groups=int(rng.integers(1, 4)))
    image, copies = render_copies(scene, rng, size=PICTURE)
    marks: list[Mark] = []
    for copy in copies:
        group = copy.group
        classes = (SHAPES.index(group.shape) + 1, COLOURS.index(group.colour) + 1, SIZES.index(group.size) + 1, 0)
        marks.append((copy.x - copy.radius, copy.y - copy.radius, copy.x + copy.radius, copy.y + copy.radius, classes))
    place = np.zeros((len(PLACES), 5), dtype=np.int64)
    for group in scene.groups:
        place[PLACES.index(group.place)] = (
            1, SHAPES.index(group.shape), COLOURS.index(group.colour), SIZES.index(group.size), group.count - 1,
        )  # fmt: skip
    return image, marks, place


def _reading(rng: np.random.Generator) -> tuple[Image.Image, list[Mark], np.ndarray]:
    """Three lines of random letters, each of one language, so that the tower learns letters and not words."""
    image = background(rng, size=PICTURE)
    marks: list[Mark] = []
    codes = lexicon_codes()
    for line in range(3):
        code = codes[int(rng.integers(len(codes)))]
        alphabet = _alphabet(code)
        word = "".join(alphabet[int(i)] for i in rng.integers(len(alphabet), size=int(rng.integers(2, 6))))
        area = (0.0, line / 3, 1.0, (line + 1) / 3)
        image, (left, top, right, bottom) = place_word(image, word, rng, language=code, area=area)
        shown = word[::-1] if _right_to_left(code) else word
        widths = np.cumsum([0.0] + [_advance(letter) for letter in shown])
        edges = left + (right - left) * widths / widths[-1]
        marks += [
            (float(edges[i]), top, float(edges[i + 1]), bottom, (0, 0, 0, letters().index(letter) + 1))
            for i, letter in enumerate(shown)
        ]
    return image, marks, np.zeros((len(PLACES), 5), dtype=np.int64)


@cache
def _alphabet(code: str) -> tuple[str, ...]:
    return tuple(sorted(set("".join(load_lexicon(code).words))))


@cache
def _advance(letter: str) -> float:
    from lvlm.data.worlds.fonts import font

    return float(font(32).getlength(letter))


@cache
def _right_to_left(code: str) -> bool:
    from lvlm.languages import language

    return language(code).right_to_left


def _label(marks: list[Mark], box: tuple[int, int, int, int]) -> np.ndarray:
    """(tokens, 4) classes: a token shows the mark that covers its centre, or else the nearest one that reaches into
    it.
    """
    cell = (box[2] - box[0]) / GRID
    classes = np.zeros((TOKENS, 4), dtype=np.int64)
    nearest = np.full(TOKENS, np.inf)
    columns, rows = np.meshgrid(np.arange(GRID), np.arange(GRID))
    x = box[0] + (columns.ravel() + 0.5) * cell
    y = box[1] + (rows.ravel() + 0.5) * cell
    for left, top, right, bottom, values in marks:
        outside = np.maximum(
            np.abs(x - (left + right) / 2) - (right - left) / 2, np.abs(y - (top + bottom) / 2) - (bottom - top) / 2
        )
        centre = np.hypot(x - (left + right) / 2, y - (top + bottom) / 2)
        distance = np.where(outside < 0.25 * cell, centre, np.inf)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        classes[closer] = values
    return classes


class Heads(nn.Module):
    """What the tower is trained to tell: each token's content, and in a global view what lies at each of the four
    places.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.ModuleDict(
            {
                "shape": nn.Linear(WIDTH, len(SHAPES) + 1), "colour": nn.Linear(WIDTH, len(COLOURS) + 1),
                "size": nn.Linear(WIDTH, len(SIZES) + 1), "letter": nn.Linear(WIDTH, len(letters()) + 1),
            }
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(len(PLACES), WIDTH) * 0.5)
        self.attend = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        sizes = {"present": 2, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "count": 4}
        self.place = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})

    def forward(self, tokens: Tensor, views: Views) -> dict[str, Tensor]:
        """The losses by head: (views, tokens, width) features against the labels."""
        found_losses: dict[str, Tensor] = {}
        for name, head in self.token.items():
            target = views.labels[name].flatten()
            weight = torch.where(target > 0, 1.0, BACKGROUND_WEIGHT)
            losses = cross_entropy(head(tokens).flatten(0, 1), target, reduction="none")
            found_losses[name] = (losses * weight).sum() / weight.sum()
        whole = tokens[:: views.per_picture]
        found, _ = self.attend(self.queries.expand(len(whole), -1, -1), whole, whole, need_weights=False)
        present = views.place[..., 0].flatten()
        for index, (name, head) in enumerate(self.place.items()):
            losses = cross_entropy(head(found).flatten(0, 1), views.place[..., index].flatten(), reduction="none")
            weight = torch.ones_like(losses) if name == "present" else present.float()
            found_losses[f"place {name}"] = (losses * weight).sum() / weight.sum().clamp(min=1)
        return found_losses


def train_stem(
    tower: VisionTransformer, *, recipe: VitRecipe, seed: int, report: Callable[[dict[str, float]], None]
) -> None:
    """Teach the stem of `tower` single letters and shapes, before it sees pictures."""
    stem = tower.patch_embed
    torch.manual_seed(stream(seed, "stem heads"))
    heads = nn.ModuleDict({"letter": nn.Linear(WIDTH, len(letters())), "shape": nn.Linear(WIDTH, len(SHAPES))})
    banks = {"letter": letter_bank(letters()), "shape": shape_bank()}
    parameters = [*stem.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.stem_lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    rng = np.random.default_rng(stream(seed, "squares"))
    for step in range(recipe.stem_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.stem_lr * warmup_then_cosine(step, recipe.stem_steps, recipe.warmup_steps)
        drawn = {
            name: draw_squares(bank, rng, count=recipe.stem_batch, coloured=name == "shape")
            for name, bank in banks.items()
        }
        pixels = torch.cat([pixels for pixels, _ in drawn.values()])
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        middle = stem(pixels)[:, 4].split(recipe.stem_batch)  # type: ignore[operator]
        losses = {
            name: cross_entropy(heads[name](tokens), drawn[name][1]) for name, tokens in zip(drawn, middle, strict=True)
        }
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            report({f"stem {name}": loss.item() for name, loss in losses.items()} | {"stem step": step})


def warmup_then_cosine(step: int, steps: int, warmup: int) -> float:
    """The factor of a learning rate at a step, from 0."""
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * step / steps))


def train_vit(
    *,
    recipe: VitRecipe,
    seed: int,
    compiled: bool = True,
    on_progress: Callable[[dict[str, float]], None] | None = None,
) -> VisionTransformer:
    """Train one draw: its seed sets the initial weights and the pictures."""
    torch.manual_seed(stream(seed, "vit init"))
    tower, heads = tiny_vit(), Heads()
    for module in tower.modules():  # timm's 0.02 is made for wide towers; at width 128 it learns several times slower
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    train_stem(tower, recipe=recipe, seed=seed, report=on_progress or (lambda _: None))
    forward = torch.compile(tower.forward_features) if compiled else tower.forward_features
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    steps = recipe.pictures // recipe.batch
    rng = np.random.default_rng(stream(seed, "pictures"))
    started, running = time.monotonic(), dict[str, float]()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warmup_then_cosine(step, steps, recipe.warmup_steps)
        views = draw_views(rng, pictures=recipe.batch)
        losses = heads(forward(views.pixels), views)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, loss in losses.items():
            running[name] = 0.98 * running.get(name, loss.item()) + 0.02 * loss.item()
        if on_progress and step % 50 == 0:
            at = {"step": step, "steps": steps, "loss": sum(running.values()), "seconds": time.monotonic() - started}
            on_progress(at | running)
    tower.eval()
    return tower


@torch.inference_mode()
def probe(
    tower: VisionTransformer, *, pictures: int = 1500, seed: int = 0, feature_layer: int = -2
) -> dict[str, float]:
    """Accuracy of ridge classifiers on single tokens of the features that the adapter gets, on pictures of their own.

    Keys such as `global/colour`, `tile/letter`: over tokens that show something; `global` views have half the
    resolution. `tile/letter a` is one letter's share, for every letter that the held pictures show ten times.
    """
    fitted, held = (_features(tower, np.random.default_rng([seed, part]), pictures, feature_layer) for part in (1, 2))
    result = {}
    for view in ("global", "tile"):
        for name in ("shape", "colour", "size", "letter"):
            x, y = _shown(fitted, view, name)
            x_test, y_test = _shown(held, view, name)
            targets = torch.nn.functional.one_hot(y, int(max(y.max(), y_test.max())) + 1).float()
            gram = x.T @ x + 1e-2 * len(x) * torch.eye(x.shape[1]) / x.shape[1]
            guess = (x_test @ torch.linalg.solve(gram, x.T @ targets)).argmax(1)
            result[f"{view}/{name}"] = float((guess == y_test).float().mean())
            if (view, name) == ("tile", "letter"):
                for number, letter in enumerate(letters(), start=1):
                    if (shown := y_test == number).sum() >= 10:
                        result[f"tile/letter {letter}"] = float((guess[shown] == number).float().mean())
    return result


def _features(tower: VisionTransformer, rng: np.random.Generator, pictures: int, layer: int) -> tuple[Tensor, Views]:
    views = draw_views(rng, pictures=pictures)
    parts = [
        tower.forward_intermediates(
            part, indices=[len(tower.blocks) + layer], norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
        for part in torch.split(views.pixels, 256)
    ]
    return torch.cat(parts), views


def _shown(features: tuple[Tensor, Views], view: str, name: str) -> tuple[Tensor, Tensor]:
    tokens, views = features
    first = torch.arange(len(tokens)) % views.per_picture == 0
    chosen = first if view == "global" else ~first
    labels = views.labels[name][chosen].flatten()
    x = tokens[chosen].flatten(0, 1)[labels > 0]
    return torch.cat([x, torch.ones(len(x), 1)], dim=1), labels[labels > 0]
