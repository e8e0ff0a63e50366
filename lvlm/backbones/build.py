"""Builds every file under `lvlm/assets` that is learned: tokenizer, five language models and towers, a control,
their card. Called by `python -m lvlm backbones`; a draw that is there already is left alone, so an interrupted
build goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lvlm.backbones import card
from lvlm.backbones.lm import LmRecipe, train_lm
from lvlm.backbones.text import ANSWER_MIX, NO_MIX, TextWorld, text_world_settings
from lvlm.backbones.tokenizer import train_tokenizer
from lvlm.backbones.vision import MEAN, STD, VitRecipe, probe, train_vit
from lvlm.backbones.vit import IMAGE_SIZE, tiny_vit
from lvlm.data.worlds.lexicon import lexicon_codes
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language
from lvlm.records import write_json, write_text

DRAWS = 5
CLEAN = "tiny-lm-clean"
TOKENIZER = "tiny-tokenizer"
TOKENIZER_DOCUMENTS = 30_000
TRAINING_FILE = "training.json"
"""In the folder of a draw: all that it was made of, besides the code."""
LINE_SECONDS = 30.0
"""Between two lines about a training."""
Say = Callable[[str], None]


def build(
    folder: Path,
    *,
    draws: Sequence[int],
    parts: Sequence[str],
    say: Say = print,
    scale: float = 1.0,
    compiled: bool = True,
) -> None:
    """Train what is missing among `parts` (`lm`, `clean`, `vit`, `card`) of the given draws into `folder`.

    `scale` shortens every training by a factor, to try the script out; the shipped files have 1. `compiled` needs a
    C++ compiler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, say)
    if "lm" in parts:
        for draw in draws:
            _language_model(
                folder / f"tiny-lm-{draw}",
                tokenizer,
                seed=draw,
                mix=ANSWER_MIX,
                say=say,
                scale=scale,
                compiled=compiled,
            )
    if "clean" in parts:
        _language_model(folder / CLEAN, tokenizer, seed=0, mix=NO_MIX, say=say, scale=scale, compiled=compiled)
    if "vit" in parts:
        for draw in draws:
            _tower(folder / f"tiny-vit-{draw}", seed=draw, say=say, scale=scale, compiled=compiled)
    if "card" in parts:
        write_card(folder, say=say)


def _tokenizer(folder: Path, say: Say) -> PreTrainedTokenizerFast:
    target = folder / TOKENIZER
    if not target.exists():
        say("tokenizer: learning merges")
        rng = np.random.default_rng(20_250_112)
        documents = TextWorld().documents(rng, count=TOKENIZER_DOCUMENTS)
        texts = [text for _, turns in documents for turn in turns for text in turn]
        with finished(target) as unfinished:
            train_tokenizer(texts).save_pretrained(str(unfinished))
    return PreTrainedTokenizerFast.from_pretrained(str(target))  # type: ignore[no-any-return]


def _language_model(
    target: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    mix: dict[str, float],
    say: Say,
    scale: float,
    compiled: bool,
) -> None:
    recipe = LmRecipe()
    recipe = dataclasses.replace(recipe, documents=max(recipe.batch, int(recipe.documents * scale)))
    world = TextWorld(answer_mix=mix)
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:12]
    making = {
        "seed": seed, "answer_mix": mix, "recipe": dataclasses.asdict(recipe), "documents": text_world_settings(),
        "tokenizer": vocabulary,
    }  # fmt: skip
    if is_made(target, making):
        return say(f"{target.name}: already there")
    model = train_lm(
        tokenizer,
        world=world,
        recipe=recipe,
        seed=seed,
        compiled=compiled,
        on_progress=progress_of(target.name, say),
    )
    with finished(target) as unfinished:
        model.half().save_pretrained(unfinished)
        write_json(unfinished / TRAINING_FILE, making)


def is_made(target: Path, making: Mapping[str, Any]) -> bool:
    """Whether a draw is there; one of another making is an error, as draws of one set differ in their seed only."""
    if not target.exists():
        return False
    found = json.loads((target / TRAINING_FILE).read_text(encoding="utf-8"))
    if different := [name for name, value in making.items() if found.get(name) != value]:
        raise InputError(
            f"{target} was trained with other settings ({', '.join(different)}; see its {TRAINING_FILE}) than this "
            "version of the toolkit trains with. Remove it, or build into another folder (--out)."
        )
    return True


def _tower(target: Path, *, seed: int, say: Say, scale: float, compiled: bool) -> None:
    recipe = VitRecipe()
    shorter = {
        "pictures": max(recipe.batch, int(recipe.pictures * scale)),
        "stem_steps": max(1, int(recipe.stem_steps * scale)),
    }
    recipe = dataclasses.replace(recipe, **shorter)
    making = {"seed": seed, "recipe": dataclasses.asdict(recipe)}
    if is_made(target, making):
        return say(f"{target.name}: already there")
    progress = progress_of(target.name, say, stem_steps=recipe.stem_steps)
    tower = train_vit(recipe=recipe, seed=seed, compiled=compiled, on_progress=progress)
    with finished(target) as unfinished:
        save_tower(unfinished, tower)
        write_json(unfinished / TRAINING_FILE, making)


def save_tower(folder: Path, tower: torch.nn.Module) -> None:
    """Write a tiny tower in 16 bits, as `lvlm.model.tower` reads it."""
    save_file(
        {name: value.half().contiguous() for name, value in tower.state_dict().items()},
        folder / "model.safetensors",
    )
    settings = {
        "timm": {"architecture": "tiny_vit", "args": {}},
        "image_size": IMAGE_SIZE, "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic",
    }  # fmt: skip
    write_json(folder / "config.json", settings)


class finished:
    """A folder that appears under its name only when everything in it is written."""

    def __init__(self, target: Path) -> None:
        self.target, self.unfinished = target, target.with_name(f".{target.name}.{os.getpid()}.unfinished")

    def __enter__(self) -> Path:
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)
        return self.unfinished

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and not self.target.exists():  # another build may have been faster
                self.unfinished.rename(self.target)
        finally:
            shutil.rmtree(self.unfinished, ignore_errors=True)


def progress_of(name: str, say: Say, *, stem_steps: int = 0) -> Callable[[dict[str, float]], None]:
    """Says a line every `LINE_SECONDS`, of the stem of a tower as well, which is trained before the rest."""
    last = time.monotonic()

    def report(at: dict[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        if "stem step" in at:
            losses = [f"{key.removeprefix('stem ')} {loss:.3f}" for key, loss in at.items() if key != "stem step"]
            say(f"{name}: stem step {at['stem step']:.0f} of {stem_steps}, loss of {', '.join(losses)}")
            return
        line = f"{name}: step {at['step']:.0f} of {at['steps']:.0f}, loss {at['loss']:.3f}"
        if at["step"]:
            line += f", {at['seconds'] * (at['steps'] / at['step'] - 1) / 60:.0f} min left"
        say(line)

    return report


def load_lm(folder: Path) -> torch.nn.Module:
    """A shipped language model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def load_vit(folder: Path) -> VisionTransformer:
    """A shipped tower in float32."""
    tower = tiny_vit()
    tower.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    tower.eval()
    return tower


def measure(folder: Path, say: Say) -> dict[str, dict[str, dict[str, float]]]:
    """Every figure of the card: model name -> language or view -> measure -> value."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / TOKENIZER))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("tiny-lm*")):
        say(f"{path.name}: measuring")
        model = load_lm(path)
        codes = in_table_order(lexicon_codes())
        figures[path.name] = {code: card.language_figures(model, tokenizer, code) for code in codes}
    for path in sorted(folder.glob("tiny-vit-*")):
        say(f"{path.name}: measuring")
        figures[path.name] = {"probe": probe(load_vit(path))}
    return figures


def write_card(folder: Path, *, say: Say = print) -> None:
    """Measure the shipped backbones and write `CARD.md` for people and `card.json` for tests."""
    figures = measure(folder, say)
    write_json(folder / "card.json", figures)
    write_text(folder / "CARD.md", card.render_card(figures, tier=lambda code: language(code).tier))


def read_card(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The figures that `write_card` stored."""
    return dict(json.loads((folder / "card.json").read_text(encoding="utf-8")))
